"""Every estimator's expected gradient is the gradient its docstring claims; see estimator_table."""

from pathlib import Path

import pytest
import torch
from estimator_table import (
    COMPLETIONS,
    STUDENT,
    TABLE,
    TEACHER,
    V,
    dropped_term,
    expected,
    grad,
    kl,
    local,
    positions,
    probs,
    reach,
    rows,
)

from opd.core import losses
from opd.core.distributions import DenseDistribution
from opd.core.objective import Objective

ENUMERATION = 1e-14  # float64 sums of at most a few hundred terms of size 1
ROWS = rows()


@pytest.mark.parametrize("row", [pytest.param(r, id=f"{r.level}-{r.estimator}") for r in ROWS])
def test_expected_gradient_is_the_claimed_one(row):
    assert row.error < ENUMERATION
    assert row.size > 0.05 or row.claim == "0"


def test_the_table_can_tell_its_claims_apart():
    """Two claims that happened to share a gradient would let one pass for the other."""
    for level in ("position", "sequence"):
        claims = {r.claim: r.want for r in ROWS if r.level == level}
        names = list(claims)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                apart = (claims[first] - claims[second]).abs().max()
                same = {first, second} == {
                    "KL(p || q^1.25 ref^-0.25)",
                    "-(1.25 E log q/ref - KL(p || ref))",
                }
                assert same == (apart < ENUMERATION), (first, second)


def test_completions_are_all_there():
    p = probs(TABLE)
    assert sum(reach(p, y) for y in COMPLETIONS).item() == pytest.approx(1, abs=1e-14)
    assert len(COMPLETIONS) == len(set(COMPLETIONS)) == 15


def test_per_token_distillation_drops_a_term_that_is_not_small():
    kept = local(lambda p, q, _: kl(p, q)).abs().max()
    assert dropped_term().abs().max() > kept


def test_truncated_sampling_biases_a_sampled_estimator():
    """Why the objective refuses top_p < 1 with support sampled."""
    p = probs(STUDENT)
    nucleus = torch.where(p >= p.topk(3).values[-1], p, 0.0)
    q = probs(TEACHER)
    got = expected(lambda log_p: losses.k1(log_p, q.log()), draw=nucleus / nucleus.sum())
    want = grad(lambda theta: kl(probs(theta), q))
    assert (got - want).abs().max() > 0.1


@pytest.mark.parametrize(("sampled", "trained"), [(0.7, 1.0), (1.0, 0.7)])
def test_sampling_at_another_temperature_biases_a_sampled_estimator(sampled, trained):
    q = probs(TEACHER).log()
    draw = (STUDENT / sampled).softmax(-1)

    def loss(theta):
        return (draw * losses.k1((theta / trained).log_softmax(-1), q)).sum()

    want = grad(lambda theta: kl((theta / trained).softmax(-1), q.exp()))
    assert (grad(loss) - want).abs().max() > 0.02


@pytest.mark.parametrize("weights", ["student_p", "teacher_p", "none"])
@pytest.mark.parametrize("normalize", [True, False])
def test_reference_weights_are_detached_advantages(weights, normalize):
    """Gradient written out by hand: d log p(v) / d theta = onehot(v) - p."""
    where = torch.tensor([1, 0, 1, 1, 0, 0, 1], dtype=torch.bool)
    p, q = probs(STUDENT), probs(TEACHER)
    w = {"student_p": p, "teacher_p": q, "none": torch.ones(V, dtype=torch.float64)}[weights]
    w = w * where
    if normalize or weights == "none":
        w = w / w.sum()
    advantage = w * (q / p).log()
    want = -(advantage - advantage.sum() * p)
    got = grad(
        lambda theta: losses.reference_topk(
            theta.log_softmax(-1), TEACHER.log_softmax(-1), where,
            weights=weights, normalize=normalize,
        )
    )  # fmt: skip
    torch.testing.assert_close(got, want, atol=ENUMERATION, rtol=0)


@pytest.mark.parametrize("garbage", [-torch.inf, torch.nan, 1e30])
@pytest.mark.parametrize("weights", ["student_p", "teacher_p", "none"])
def test_reference_mode_ignores_what_is_masked(garbage, weights):
    where = torch.tensor([[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    p = STUDENT.log_softmax(-1).expand(2, V).masked_fill(~where, garbage).requires_grad_()
    q = TEACHER.log_softmax(-1).expand(2, V).masked_fill(~where, garbage)
    out = losses.reference_topk(p, q, where, weights=weights)
    out.sum().backward()
    sliced = losses.reference_topk(p[:1, where[0]], q[:1, where[0]], weights=weights)
    torch.testing.assert_close(out[:1], sliced, atol=ENUMERATION, rtol=0)
    assert out[1] == 0
    assert torch.isfinite(p.grad).all()
    assert (p.grad[~where] == 0).all()


@pytest.mark.parametrize(
    "objective",
    [
        Objective(support="sampled", estimator="k3_forward"),
        Objective(support="full"),
        Objective(k=3),
        Objective(k=3, mode="reference"),
        Objective(k=3, mode="tail", divergence="jsd"),
        Objective(k=3, entropy_forward_kl=0.1),
    ],
)
def test_nothing_reaches_the_teacher(objective):
    """The teacher is data: an objective must not train it even if its graph is open."""
    teacher = TEACHER.expand(V, V).clone().requires_grad_()
    student = STUDENT.expand(V, V).clone().requires_grad_()
    tokens = positions(V, torch.arange(V), STUDENT.expand(V, V), TEACHER.expand(V, V))
    objective.per_position(
        DenseDistribution(student), DenseDistribution(teacher), tokens
    ).sum().backward()
    assert teacher.grad is None
    assert (student.grad != 0).any()


def test_doubling_the_denominator_halves_the_gradient_and_micro_batches_do_not_matter():
    raw = torch.stack([STUDENT, 0.5 * STUDENT, TEACHER, -STUDENT])
    q = TEACHER.expand(4, V).log_softmax(-1)

    def gradient(parts, denominator):
        theta = raw.clone().requires_grad_()
        for part in parts:
            p = theta[part].log_softmax(-1)
            (losses.reverse_kl(p, q[part]).sum() / denominator).backward()
        return theta.grad

    whole = gradient([slice(0, 4)], 4)
    torch.testing.assert_close(gradient([slice(0, 1), slice(1, 4)], 4), whole)
    torch.testing.assert_close(gradient([slice(0, 4)], 8), whole / 2)


def test_the_page_shows_the_measured_table():
    page = (Path(__file__).parents[2] / "docs" / "math.md").read_text(encoding="utf-8")
    for row in ROWS:
        claim = row.claim.replace("|", "\\|")
        assert f"| {row.level} | {row.estimator} | {claim} |" in page
