"""Diagnostics against loops over tokens in plain Python, and the exactness of their merging."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.core import diagnostics
from opd.core.diagnostics import Measure, TopK
from opd.run import metric_names
from opd.types import Mean

N, V, K = 5, 12, 4
EXACT = 1e-12


def distributions(seed=0, n=N, v=V, noise=1.2):
    generator = torch.Generator().manual_seed(seed)
    p = 2 * torch.randn(n, v, generator=generator, dtype=torch.float64)
    q = p + noise * torch.randn(n, v, generator=generator, dtype=torch.float64)
    return p.log_softmax(-1), q.log_softmax(-1)


def naive(log_p, log_q, k, target):
    """One position by the paper's definitions: name -> (total, n)."""
    p, q = log_p.exp().tolist(), log_q.exp().tolist()
    s = sorted(range(len(p)), key=lambda v: -p[v])[:k]
    t = sorted(range(len(q)), key=lambda v: -q[v])[:k]
    both = [v for v in s if v in t]
    ps, qs = sum(p[v] for v in both), sum(q[v] for v in both)
    a = {v: p[v] / ps * (math.log(q[v] / qs) - math.log(p[v] / ps)) for v in both}
    star = max(both, key=lambda v: abs(a[v])) if both else None
    ratio = {v: math.log(q[v] / p[v]) for v in both}
    h_p, h_q = -sum(x * math.log(x) for x in p), -sum(x * math.log(x) for x in q)
    some, size = float(bool(both)), len(both)
    mean = lambda xs: sum(xs) / size if size else 0.0  # noqa: E731
    own = sum(p[v] for v in s)
    return {
        "diag/student_entropy": (h_p, 1),
        "diag/teacher_entropy": (h_q, 1),
        "diag/entropy_gap_abs": (abs(h_q - h_p), 1),
        "diag/reverse_kl": (sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)), 1),
        "diag/forward_kl": (sum(y * math.log(y / x) for x, y in zip(p, q, strict=True)), 1),
        "diag/teacher_support_mass": (sum(q[v] for v in s), 1),
        "diag/support_mass": (own, 1),
        "diag/overlap_ratio": (size / k, 1),
        "diag/top1_agreement": (float(s[0] == t[0]), 1),
        "diag/overlap_advantage": (mean(a.values()), some),
        "diag/overlap_mass_student": (ps, 1),
        "diag/overlap_mass_teacher": (qs, 1),
        "diag/extreme_advantage_diff": (p[star] - q[star] if both else 0.0, some),
        "diag/token_reward": (math.log(q[target] / p[target]), 1),
        "reference/overlap_advantage": (sum(p[v] / own * ratio[v] for v in both), size),
        "reference/overlap_mass_student": (ps, some),
        "reference/overlap_mass_teacher": (qs, some),
        "verl/overlap_token_advantage": (mean([-q[v] * ratio[v] for v in both]), some),
        "verl/student_mass": (sum(p[v] for v in t), 1),
        "verl/teacher_mass": (sum(q[v] for v in t), 1),
    }


def test_every_diagnostic_is_its_definition():
    log_p, log_q = distributions(noise=3.0)
    log_q[0] = log_p[0].flip(0)  # nearly opposite rankings
    order = log_p[1].argsort(descending=True)
    log_q[1, order] = log_p[1, order.flip(0)]  # exactly opposite: no overlap at all
    targets = torch.arange(N)
    got = diagnostics.full_metrics(log_p, log_q, k=K, targets=targets)
    assert set(got) == {*metric_names.FULL, *metric_names.OVERLAP, *metric_names.SAMPLED}
    for i in range(N):
        want = naive(log_p[i], log_q[i], K, i)
        assert set(want) == set(got)
        for name, (total, n) in want.items():
            measure = got[name]
            assert measure.total[i].item() == pytest.approx(total, abs=EXACT), (name, i)
            assert measure.n[i].item() == n, (name, i)
    assert got["diag/overlap_ratio"].total[1] == 0


def test_a_float64_student_of_a_float32_teacher_is_measured():
    """student.precision: float64 ended every run in its first step with an internal error."""
    p, q = distributions()
    mixed = diagnostics.overall(diagnostics.full_metrics(p, q.float(), k=K))
    whole = diagnostics.overall(diagnostics.full_metrics(p, q, k=K))
    for name, mean in whole.items():
        assert mixed[name].value == pytest.approx(mean.value, abs=1e-5), name


def test_equal_models_have_nothing_to_distil():
    log_p, _ = distributions()
    metrics = diagnostics.overall(diagnostics.full_metrics(log_p, log_p, k=K))
    assert metrics["diag/overlap_ratio"].value == 1
    assert metrics["diag/top1_agreement"].value == 1
    for name in ("overlap_advantage", "entropy_gap_abs", "reverse_kl", "extreme_advantage_diff"):
        assert metrics[f"diag/{name}"].value == pytest.approx(0, abs=EXACT)
    top = log_p.topk(K).values.exp().sum(-1).mean().item()
    for name in ("overlap_mass_student", "overlap_mass_teacher", "support_mass"):
        assert metrics[f"diag/{name}"].value == pytest.approx(top)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), k=st.integers(1, V), noise=st.floats(0, 4))
def test_paper_advantage_is_never_positive_and_bounds_hold(seed, k, noise):
    log_p, log_q = distributions(seed, noise=noise)
    full = diagnostics.full_metrics(log_p, log_q, k=k)
    assert (full["diag/overlap_advantage"].total <= EXACT).all()
    assert (
        full["diag/overlap_mass_student"].total <= full["diag/support_mass"].total + EXACT
    ).all()
    student, teacher = (TopK(x.topk(k).indices, x.topk(k).values) for x in (log_p, log_q))
    bound = diagnostics.topk_metrics(student, teacher)
    assert set(bound) == {*metric_names.OVERLAP, *metric_names.BOUNDS}
    for name in metric_names.OVERLAP:
        torch.testing.assert_close(bound[name], full[name], atol=EXACT, rtol=0)
    slack = 1e-7  # a tail's mass is known to one rounding of 1, a log of it to 1e-16 / mass
    mass = full["diag/teacher_support_mass"].total
    assert (bound["bound/teacher_support_mass_lower"].total <= mass + slack).all()
    assert (bound["bound/teacher_support_mass_upper"].total >= mass - slack).all()
    for name in ("reverse_kl", "forward_kl", "teacher_entropy"):
        lower = bound[f"bound/{name}_lower"].total
        assert (lower >= -slack).all()
        assert (lower <= full[f"diag/{name}"].total + slack).all()


def test_bounds_are_tight_when_the_lists_hold_everything():
    log_p, log_q = distributions()
    tops = [TopK(x.topk(V).indices, x.topk(V).values) for x in (log_p, log_q)]
    bound, full = diagnostics.topk_metrics(*tops), diagnostics.full_metrics(log_p, log_q, k=V)
    for name in ("reverse_kl", "forward_kl", "teacher_entropy", "teacher_support_mass"):
        got = bound[f"bound/{name}_lower"].total
        torch.testing.assert_close(got, full[f"diag/{name}"].total, atol=1e-9, rtol=0)


def test_impossible_tokens_give_no_nan():
    log_p, log_q = distributions()
    log_p[:, 3] = log_q[:, 3] = -math.inf
    log_p, log_q = log_p.log_softmax(-1), log_q.log_softmax(-1)
    for measure in diagnostics.full_metrics(
        log_p, log_q, k=V, targets=torch.zeros(N).long()
    ).values():
        assert torch.isfinite(measure.total).all()


def test_lists_of_different_length_are_an_error():
    log_p, log_q = distributions()
    tops = [TopK(x.topk(k).indices, x.topk(k).values) for x, k in ((log_p, 3), (log_q, 4))]
    with pytest.raises(ValueError, match="differ"):
        diagnostics.overlap_metrics(*tops)


def test_both_readings_of_the_entropy_gap():
    log_p = torch.stack(
        [torch.full((4,), 0.25).log(), torch.tensor([0.97, 0.01, 0.01, 0.01]).log()]
    )
    metrics = diagnostics.overall(diagnostics.full_metrics(log_p, log_p.flip(0), k=2))
    gap = metrics["diag/entropy_gap_abs"].value
    assert gap == pytest.approx(math.log(4) - diagnostics.entropy(log_p)[1].item(), rel=1e-6)
    assert diagnostics.entropy_gap_mean(metrics).value == pytest.approx(0, abs=1e-6)
    empty = {"diag/student_entropy": Mean(0, 0), "diag/teacher_entropy": Mean(0, 0)}
    assert diagnostics.entropy_gap_mean(empty) == Mean(0, 0)


def test_drift_and_effective_sample_size():
    trainer, sampler = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.0, -1.0, -1.5])
    metrics = diagnostics.overall(diagnostics.drift_metrics(trainer, sampler))
    w = np.exp([0.0, -1.0, 1.0])
    assert metrics["drift/logp_gap"].value == pytest.approx(2 / 3)
    ess = diagnostics.drift_ess(metrics["drift/ratio"], metrics["drift/ratio_squared"])
    assert ess.value == pytest.approx(w.sum() ** 2 / (3 * (w**2).sum()), rel=1e-6)
    assert ess.count == 3
    same = diagnostics.overall(diagnostics.drift_metrics(trainer, trainer))
    assert diagnostics.drift_ess(same["drift/ratio"], same["drift/ratio_squared"]).value == 1
    assert diagnostics.drift_ess(Mean(0, 0), Mean(0, 0)) == Mean(0, 0)


@pytest.mark.parametrize(
    ("ids", "rate"),
    [
        ([1, 2, 3, 4, 5, 6], 0.0),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),
        ([7] * 10, 6 / 7),
        ([1, 2, 3], 0.0),
        ([], 0.0),
    ],
)
def test_repetition_counts_grams_seen_before(ids, rate):
    assert diagnostics.repetition(ids) == pytest.approx(rate)


def test_bins_hold_each_position_once_and_in_the_right_place():
    position = torch.tensor([0, 3, 4, 9, 0, 1])
    length = torch.tensor([10, 10, 10, 10, 2, 2])
    value = torch.tensor([1.0, 2, 4, 8, 16, 32])
    n = torch.tensor([1.0, 1, 0, 2, 1, 1])
    metrics = diagnostics.by_bin(
        {"diag/x": Measure(value, n)}, position, length, edges=[0, 4, 8, 12], relative_bins=2
    )
    assert metrics == {
        "diag/x@pos0-3": Mean(1 + 2 + 16 + 32, 4),
        "diag/x@pos8-11": Mean(8, 2),
        "diag/x@rel0-50": Mean(1 + 2 + 4 + 16, 3),
        "diag/x@rel50-100": Mean(8 + 32, 3),
    }


def test_bins_merge_exactly_over_any_split():
    log_p, log_q = distributions(n=40)
    measures = diagnostics.full_metrics(log_p, log_q, k=K)
    position, length = torch.arange(40) % 20, torch.full((40,), 20)
    edges = diagnostics.position_edges(20, bins=3)
    assert edges == [0, 7, 14, 20]
    whole = diagnostics.by_bin(measures, position, length, edges=edges)
    parts = {}
    for part in (slice(0, 1), slice(1, 30), slice(30, 40)):
        some = {name: Measure(m.total[part], m.n[part]) for name, m in measures.items()}
        metrics = diagnostics.by_bin(some, position[part], length[part], edges=edges)
        for name, mean in metrics.items():
            parts[name] = parts.get(name, Mean(0, 0)) + mean
    assert set(parts) == set(whole)
    for name, mean in whole.items():
        assert parts[name].count == mean.count
        assert parts[name].total == pytest.approx(mean.total, abs=EXACT)
    binned = [m for name, m in whole.items() if name.startswith("diag/reverse_kl@pos")]
    assert sum(m.total for m in binned) == pytest.approx(
        diagnostics.overall(measures)["diag/reverse_kl"].total, abs=EXACT
    )


def test_a_position_outside_the_bins_is_an_error():
    one = {"x": Measure.of(torch.ones(1))}
    with pytest.raises(ValueError, match=r"\[0, 8\)"):
        diagnostics.by_bin(one, torch.tensor([8]), torch.tensor([9]), edges=[0, 4, 8])
    assert diagnostics.by_bin(one, torch.zeros(0), torch.zeros(0), edges=[0, 4]) == {}


def test_edges_cover_short_completions():
    assert diagnostics.position_edges(3) == [0, 1, 2, 3]
    assert diagnostics.position_edges(1024)[:3] == [0, 128, 256]
    assert diagnostics.position_edges(1024)[-1] == 1024


def test_the_gradient_of_a_bin_is_its_share_of_all():
    norms, position = torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([0, 1, 4, 5])
    length = torch.tensor([6, 6, 6, 6])
    metrics = {}
    for part in (slice(0, 2), slice(2, 4)):  # two micro-batches, each with one bin alone
        some = diagnostics.gradient_metrics(
            norms[part], position[part], length[part], edges=[0, 3, 6]
        )
        for name, mean in some.items():
            metrics[name] = metrics[name] + mean if name in metrics else mean
    shares = diagnostics.gradient_shares(metrics | {"diag/reverse_kl": Mean(1.0, 2.0)})
    assert shares["diag/gradient_share@pos0-2"].value == 3 / 8
    assert shares["diag/gradient_share@pos3-5"].value == 5 / 8
    assert shares["diag/reverse_kl"] == Mean(1.0, 2.0)
    assert "diag/gradient_share" not in shares
    nothing = diagnostics.gradient_metrics(norms * 0, position, length, edges=[0, 3, 6])
    assert diagnostics.gradient_shares(nothing) == {}
