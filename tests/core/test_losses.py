"""Values of the loss functions against naive float64 formulas in probability space."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.core import losses

EXACT = 1e-12  # float64, a few dozen operations
FP32 = 2e-6
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)


def logits(seed, *shape, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def pair(seed, n=3, v=7):
    both = torch.log_softmax(logits(seed, 2, n, v), -1)
    return both[0], both[1]


def naive(name, p, q, beta):
    """Sums over tokens in probability space, numpy, no shared code."""
    p, q = p.cpu().numpy(), q.cpu().numpy()
    p, q = np.exp(p), np.exp(q)
    kl = lambda a, b: (a * np.log(a / b)).sum(-1)  # noqa: E731
    m = beta * q + (1 - beta) * p
    return {
        "reverse_kl": lambda: kl(p, q),
        "forward_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(q, m) + (1 - beta) * kl(p, m),
        "skew_kl": lambda: kl(q, m),
    }[name]()


def value(name, p, q, where=None, beta=0.3):
    extra = {"beta": beta} if name in ("jsd", "skew_kl") else {}
    return getattr(losses, name)(p, q, where, **extra)


DIVERGENCES = ["reverse_kl", "forward_kl", "jsd", "skew_kl"]


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_divergence_is_its_formula(name, beta):
    p, q = pair(1)
    found = value(name, p, q, beta=beta).cpu()
    np.testing.assert_allclose(found, naive(name, p, q, beta), atol=EXACT)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_without_a_mask_is_with_a_mask_of_everything(name):
    raw, q = logits(2, 3, 7).requires_grad_(), pair(3)[1]
    results = []
    for where in (None, torch.ones(3, 7, dtype=torch.bool)):
        values = value(name, torch.log_softmax(raw, -1), q, where)
        results.append((values.detach(), torch.autograd.grad(values.sum(), raw)[0]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_is_that_of_the_value(name):
    raw, q = logits(2, 3, 7).requires_grad_(), pair(3)[1]
    where = torch.ones(3, 7, dtype=torch.bool)
    where[0, 3] = where[1, 0] = False

    def on_logits(x):
        return value(name, losses.renormalise(x, where), losses.renormalise(q, where), where)

    torch.autograd.gradcheck(on_logits, raw)


def test_renormalised_entries_outside_the_support_are_impossible():
    where = torch.tensor([[True, False, True], [False, False, False]])
    raw = torch.tensor([[2.0, 9.0, 1.0], [2.0, 9.0, 1.0]], dtype=torch.float64)
    got = losses.renormalise(raw, where).exp()
    inside = 1 / (1 + math.exp(-1))
    want = torch.tensor([[inside, 0, 1 - inside], [0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(got, want, atol=EXACT, rtol=0)
    assert (losses.renormalise(raw, where)[~where] == -math.inf).all()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("garbage", [-math.inf, math.inf, math.nan, 1e30])
def test_masked_entries_reach_neither_value_nor_gradient(name, garbage):
    raw, teacher = logits(4, 3, 7), logits(5, 3, 7)
    where = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 1, 1]]) > 0
    clean = value(name, losses.renormalise(raw, where), losses.renormalise(teacher, where), where)
    raw, teacher = raw.masked_fill(~where, garbage), teacher.masked_fill(~where, garbage)
    raw.requires_grad_()
    dirty = value(name, losses.renormalise(raw, where), losses.renormalise(teacher, where), where)
    assert torch.equal(clean, dirty)
    dirty.sum().backward()
    assert torch.isfinite(raw.grad).all()
    assert (raw.grad[~where] == 0).all()
    assert (raw.grad[where] != 0).any()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("garbage", [-math.inf, math.nan])
def test_mask_alone_suffices_without_renormalising(name, garbage):
    p, q = pair(6)
    where = torch.ones(3, 7, dtype=torch.bool)
    where[:, 4:] = False
    clean = value(name, p[:, :4], q[:, :4])
    p, q = p.masked_fill(~where, garbage).requires_grad_(), q.masked_fill(~where, garbage)
    dirty = value(name, p, q, where)
    torch.testing.assert_close(clean, dirty, atol=EXACT, rtol=0)
    dirty.sum().backward()
    assert torch.isfinite(p.grad).all()
    assert (p.grad[:, 4:] == 0).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_tokens_neither_model_can_produce_add_nothing(name):
    raw, teacher = logits(7, 2, 6), logits(8, 2, 6)
    fewer = value(name, torch.log_softmax(raw[:, :5], -1), torch.log_softmax(teacher[:, :5], -1))
    raw[:, 5] = teacher[:, 5] = -math.inf
    raw.requires_grad_()
    all_six = value(name, torch.log_softmax(raw, -1), torch.log_softmax(teacher, -1))
    torch.testing.assert_close(fewer, all_six, atol=EXACT, rtol=0)
    all_six.sum().backward()
    assert torch.isfinite(raw.grad).all()


def test_impossible_for_the_teacher_alone_is_infinite_in_reverse_and_nothing_in_forward():
    p = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    q = torch.tensor([[0.5, 0.5, 0.0]], dtype=torch.float64).log()
    assert losses.reverse_kl(p, q).item() == math.inf
    assert losses.forward_kl(p, q).item() == pytest.approx(0.5 * math.log(2))
    assert losses.jsd(p, q).item() < math.log(2)


def test_nan_in_a_valid_entry_stays_visible():
    p, q = pair(9)
    p = p.clone()
    p[1, 2] = math.nan
    assert losses.reverse_kl(losses.renormalise(p), q)[1].isnan()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_empty_support_and_zero_positions_give_zero_with_a_graph(name):
    raw = logits(10, 3, 5).requires_grad_()
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    p, q = losses.renormalise(raw, nothing), losses.renormalise(logits(11, 3, 5), nothing)
    out = value(name, p, q, nothing)
    out.sum().backward()
    assert (out == 0).all()
    assert (raw.grad == 0).all()
    empty = value(name, p[:0], q[:0]).sum()
    assert empty.item() == 0
    assert empty.requires_grad


@pytest.mark.parametrize("name", DIVERGENCES)
def test_bf16_inputs_are_computed_in_fp32(name):
    p, q = (x.bfloat16() for x in pair(12))
    out = value(name, p, q)
    assert out.dtype == torch.float32
    exact = value(name, p.double(), q.double())
    torch.testing.assert_close(out.double(), exact, atol=FP32, rtol=0)


def test_bf16_log_softmax_gets_the_sign_of_a_small_kl_wrong_and_renormalise_does_not():
    base = logits(13, 64, 4096, scale=3.0)
    other = base + 1e-3 * logits(14, 64, 4096, scale=1.0)
    true = losses.reverse_kl(base.log_softmax(-1), other.log_softmax(-1)).mean()
    p, q = base.float(), other.float()
    kept = losses.reverse_kl(losses.renormalise(p), losses.renormalise(q)).mean()
    lost = losses.reverse_kl(p.bfloat16().log_softmax(-1), q.bfloat16().log_softmax(-1)).mean()
    assert true > 0
    assert abs(kept - true) < 0.1 * true
    assert abs(lost - true) > 100 * true


@pytest.mark.parametrize("limit", ["forward", "reverse"])
def test_jsd_limits(limit):
    p, q = pair(15)
    beta = 1e-6
    if limit == "forward":
        got, want = losses.jsd(p, q, beta=beta) / beta, losses.forward_kl(p, q)
    else:
        got, want = losses.jsd(p, q, beta=1 - beta) / beta, losses.reverse_kl(p, q)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)  # O(beta) and 1e-16/beta


def test_skew_kl_limits_and_bound():
    p, q = pair(16)
    torch.testing.assert_close(
        losses.skew_kl(p, q, beta=1e-8), losses.forward_kl(p, q), atol=1e-4, rtol=0
    )
    disjoint_p = torch.tensor([[1.0, 0.0]], dtype=torch.float64).log()
    disjoint_q = torch.tensor([[0.0, 1.0]], dtype=torch.float64).log()
    assert losses.skew_kl(disjoint_p, disjoint_q, beta=0.1).item() == pytest.approx(-math.log(0.1))


def test_jsd_is_symmetric_only_at_a_half():
    p, q = pair(17)
    torch.testing.assert_close(losses.jsd(p, q), losses.jsd(q, p), atol=EXACT, rtol=0)
    torch.testing.assert_close(
        losses.jsd(p, q, beta=0.2), losses.jsd(q, p, beta=0.8), atol=EXACT, rtol=0
    )
    assert ((losses.jsd(p, q, beta=0.2) - losses.jsd(q, p, beta=0.2)).abs() > 1e-3).all()


def test_tail_is_what_is_missing():
    p, _ = pair(18)
    tail = losses.with_tail(p[:, :3])
    torch.testing.assert_close(tail[:, 3].exp(), p[:, 3:].exp().sum(-1), atol=EXACT, rtol=0)
    torch.testing.assert_close(tail[:, :3], p[:, :3], atol=0, rtol=0)
    assert torch.logsumexp(tail, -1).abs().max() < EXACT


@pytest.mark.parametrize("mass", [1e-12, 1e-6, 0.3, 0.5, 0.9, 1 - 1e-9])
def test_tail_keeps_digits_at_both_ends(mass):
    outside = math.log1p(-mass)
    tail = losses.with_tail(torch.tensor([[outside]], dtype=torch.float64))[0, 1].item()
    assert tail == pytest.approx(math.log(mass), rel=1e-3 if mass < 1e-9 else 1e-9)


def test_tail_of_a_sum_that_rounds_to_one_stays_finite():
    logits_ = torch.tensor([[30.0, 0.0, -5.0]], requires_grad=True)
    p = torch.log_softmax(logits_, -1)
    q = torch.log_softmax(torch.tensor([[1.0, 0.0, -5.0]]), -1)
    for first, second in ((p, q), (q, p)):
        out = losses.reverse_kl(losses.with_tail(first[:, :1]), losses.with_tail(second[:, :1]))
        assert torch.isfinite(out).all()
        (grad,) = torch.autograd.grad(out.sum(), logits_, retain_graph=True)
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_tail_bound_grows_to_the_full_divergence(name):
    p, q = pair(19, n=5, v=12)
    order = p.argsort(-1, descending=True)
    p, q = p.gather(1, order), q.gather(1, order)
    full = value(name, p, q)
    bounds = [
        value(name, losses.with_tail(p[:, :k]), losses.with_tail(q[:, :k])) for k in range(1, 13)
    ]
    for smaller, larger in itertools.pairwise(bounds):
        assert (smaller <= larger + EXACT).all()
    assert (bounds[0] >= -EXACT).all()
    assert (bounds[4] < full - 1e-4).all()
    torch.testing.assert_close(bounds[-1], full, atol=1e-9, rtol=0)


def test_renormalised_topk_misses_a_difference_in_tail_mass_and_the_tail_bucket_sees_it():
    p = torch.tensor([[0.6, 0.3, 0.05, 0.05]], dtype=torch.float64).log()
    q = torch.tensor([[0.4, 0.2, 0.2, 0.2]], dtype=torch.float64).log()
    top = (p[:, :2], q[:, :2])
    assert losses.reverse_kl(*(losses.renormalise(x) for x in top)).abs().item() < EXACT
    assert losses.reverse_kl(*(losses.with_tail(x) for x in top)).item() > 0.1


@SETTINGS
@given(seed=st.integers(0, 10**6), name=st.sampled_from(DIVERGENCES), shift=st.floats(-50, 50))
def test_invariances(seed, name, shift):
    raw, teacher = logits(seed, 4, 6), logits(seed + 1, 4, 6)
    loss = lambda a, b: value(name, losses.renormalise(a), losses.renormalise(b))  # noqa: E731
    base = loss(raw, teacher)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    tolerance = 1e-10  # float64 after a shift of 50
    torch.testing.assert_close(loss(raw + shift, teacher - shift), base, atol=tolerance, rtol=0)
    torch.testing.assert_close(loss(raw[:, order], teacher[:, order]), base, atol=EXACT, rtol=0)
    split = torch.cat([loss(raw[:1], teacher[:1]), loss(raw[1:], teacher[1:])])
    torch.testing.assert_close(split, base, atol=EXACT, rtol=0)
    assert (base >= -EXACT).all()
    assert (base > 1e-6).all()
    assert loss(raw, raw + shift).abs().max() < tolerance


@SETTINGS
@given(seed=st.integers(0, 10**6), name=st.sampled_from(DIVERGENCES), bits=st.integers(1, 63))
def test_masked_equals_sliced(seed, name, bits):
    raw, teacher = logits(seed, 2, 6), logits(seed + 1, 2, 6)
    keep = torch.tensor([bool(bits >> i & 1) for i in range(6)])
    where = keep.expand(2, 6)
    masked = value(name, losses.renormalise(raw, where), losses.renormalise(teacher, where), where)
    sliced = value(name, losses.renormalise(raw[:, keep]), losses.renormalise(teacher[:, keep]))
    torch.testing.assert_close(masked, sliced, atol=EXACT, rtol=0)


def test_estimators_have_the_documented_values():
    logp = torch.tensor([-1.0, -2.0], dtype=torch.float64)
    other = torch.tensor([-1.5, -0.5], dtype=torch.float64)
    assert losses.k1(logp, other).tolist() == [0.5, -1.5]
    assert losses.k2(logp, other).tolist() == [0.125, 1.125]
    torch.testing.assert_close(
        losses.k3_forward(logp, other), torch.exp(other - logp) - 1 - (other - logp)
    )


def test_outcome_advantage_is_a_z_score_within_its_group():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    got = losses.group_advantage(rewards)
    std = np.std([1, 0, 0, 0], ddof=1)
    want = [(1 - 0.25) / std, -0.25 / std, -0.25 / std, -0.25 / std]
    np.testing.assert_allclose(got[0].tolist(), want, rtol=1e-5)
    assert got[1].tolist() == [0, 0, 0, 0]
    assert losses.group_advantage(torch.tensor([[1.0], [0.0]])).tolist() == [[0], [0]]


def test_extrapolated_teacher_is_the_published_advantage():
    q, ref = logits(20, 5), logits(21, 5)
    p = logits(22, 5)
    got = losses.extrapolate(q, ref, 1.25) - p
    torch.testing.assert_close(got, (q - p) + 0.25 * (q - ref), atol=EXACT, rtol=0)
    assert torch.equal(losses.extrapolate(q, ref, 1.0), q)
    q[0] = ref[0] = -math.inf
    assert losses.extrapolate(q, ref, 1.25)[0] == -math.inf


def test_entropy_aware_term_acts_only_where_the_teacher_is_uncertain():
    p, q = pair(23)
    entropies = torch.tensor([0.5, 0.8, 1.2], dtype=torch.float64)
    got = losses.entropy_aware(p[:, :4], q[:, :4], entropies, 0.8)
    want = (q[2, :4].exp() * (q[2, :4] - p[2, :4])).sum()
    assert got[:2].tolist() == [0, 0]
    assert got[2].item() == pytest.approx(want.item(), abs=EXACT)


def test_small_terms():
    assert losses.cross_entropy(torch.tensor([-0.25])).item() == 0.25
    decay = losses.position_decay(torch.tensor([0, 1, 3]), 0.5)
    assert decay.tolist() == [1.0, 0.5, 0.125]
    keep = losses.ordinary_tokens(
        torch.tensor([5, 1, 2, 9]), special=torch.tensor([1, 2, 3]), stop=torch.tensor([2])
    )
    assert keep.tolist() == [True, False, True, True]
