"""Diagnostics of on-policy distillation: per-position values in, exact (sum, count) pairs out.

Paper section 2.3 and appendix B; variants of the published code and of verl have names of their
own (`reference/`, `verl/`). Everything is measured on the student's completions, one value per
position, so that sums can be added over micro-batches, ranks and steps. Shapes: N positions,
k tokens of each model, V vocabulary. p is the student's distribution, q the teacher's.

`opd.run.metric_names` lists every name, docs/metrics.md explains it: formula, unit, healthy range.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd.core.cpu_kernels import topk
from opd.core.losses import all_possible, forward_kl, renormalise, reverse_kl, with_tail
from opd.core.precision import at_least_float32
from opd.types import Mean, Metrics

GRADIENT = "diag/gradient_share"
# Support size of overlap ratio and overlap mass, whatever the loss trains on: the paper's, and what
# alarms and `opd check` judge by, so that numbers of two runs can be compared.
OVERLAP_K = 16


class Measure(NamedTuple):
    """A quantity at N positions as exact pairs: what to add to the sum and to the count, (N,) each.

    The count n is 0 where the quantity is undefined (and the total then 0, never NaN).
    """

    total: Tensor
    n: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Measure:
        """A quantity (N,) that is defined at every position."""
        return cls(values, torch.ones_like(values))


class TopK(NamedTuple):
    """Top-k tokens of a model at N positions: ids (N, k) and normalised log-probs (N, k)."""

    ids: Tensor
    logp: Tensor


def entropy(logp: Tensor) -> Tensor:
    """H = -sum_v p log p in nats, (N, V) -> (N,); impossible tokens add 0."""
    logp = at_least_float32(logp)
    live = logp != -torch.inf
    safe = torch.where(live, logp, 0.0)
    return -torch.where(live, safe.exp() * safe, 0.0).sum(-1)


def full_metrics(
    student_logp: Tensor, teacher_logp: Tensor, *, k: int, targets: Tensor | None = None
) -> dict[str, Measure]:
    """Everything measurable from both whole distributions at N positions.

    Args:
        student_logp: (N, V) log p; student_logp and teacher_logp use the same token numbering.
        teacher_logp: (N, V) log q.
        k: support size of overlap and mass (paper: 16), at most V.
        targets: (N,) the sampled tokens; adds `diag/token_reward`.

    Returns:
        The names `FULL` and `OVERLAP` (and `SAMPLED` with targets) of `opd.run.metric_names`, each
        a Measure of (N,) tensors.
    """
    with torch.no_grad():
        p, q = at_least_float32(student_logp), at_least_float32(teacher_logp)
        dtype = torch.promote_types(p.dtype, q.dtype)  # a float64 student, a float32 teacher
        p, q = p.to(dtype), q.to(dtype)
        student, teacher = (TopK(ids, logp) for logp, ids in (topk(p, k), topk(q, k)))
        h_p, h_q, reverse, forward = _entropies_and_kls(p, q)
        values = {
            "diag/student_entropy": h_p,
            "diag/teacher_entropy": h_q,
            "diag/entropy_gap_abs": (h_q - h_p).abs(),
            "diag/reverse_kl": reverse,
            "diag/forward_kl": forward,
            "diag/teacher_support_mass": q.gather(1, student.ids).exp().sum(-1),
            "verl/student_mass": p.gather(1, teacher.ids).exp().sum(-1),
        }
        if targets is not None:
            ids = targets[:, None]
            values["diag/token_reward"] = (q.gather(1, ids) - p.gather(1, ids))[:, 0]
        measures = {name: Measure.of(value) for name, value in values.items()}
        return overlap_metrics(student, teacher) | measures


def _entropies_and_kls(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both entropies, reverse and forward KL, (N,) each, of log-probs (N, V).

    Together, seven passes over the vocabulary where no token is impossible; separately, thirty.
    """
    if not (all_possible(p) and all_possible(q)):
        return entropy(p), entropy(q), reverse_kl(p, q), forward_kl(p, q)
    difference, prob = p - q, p.exp()
    h_p, reverse = -torch.linalg.vecdot(prob, p), torch.linalg.vecdot(prob, difference)
    prob = q.exp()
    return (
        h_p,
        -torch.linalg.vecdot(prob, q),
        reverse,
        -torch.linalg.vecdot(prob, difference),
    )


def overlap_metrics(student: TopK, teacher: TopK) -> dict[str, Measure]:
    """The overlap family, exact from both models' top-k lists (equal k, best token first).

    Paper Eq. 6, 7, 9, 10 and appendix B.2 as `diag/`; the published code's variants as
    `reference/`, verl's as `verl/`.

    Returns:
        The `OVERLAP` names. `diag/overlap_advantage` and `diag/extreme_advantage_diff` are
        undefined where the lists share nothing; the `reference/` and `verl/` counts follow their
        sources.

    Raises:
        ValueError: if the lists differ in length.
    """
    with torch.no_grad():
        ids, log_p = student.ids, at_least_float32(student.logp)
        shared, log_q = _teacher_logp_on_student(student, teacher)
        size = shared.sum(-1).to(log_p.dtype)
        some = (size > 0).to(log_p.dtype)
        p = torch.where(shared, log_p.exp(), 0.0)
        q = torch.where(shared, log_q.exp(), 0.0)
        advantage = _pointwise(renormalise(log_p, shared), renormalise(log_q, shared))
        extreme = advantage.abs().masked_fill(~shared, -1.0).argmax(-1, keepdim=True)
        difference = (p - q).gather(1, extreme)[:, 0]
        # Lists longer than the vocabulary in use end in impossible tokens: no inf - inf.
        real = shared & (log_p != -torch.inf) & (log_q != -torch.inf)
        ratio = torch.where(real, log_q, 0.0) - torch.where(real, log_p, 0.0)
        of_support = renormalise(log_p).exp()
        mass_p, mass_q = p.sum(-1), q.sum(-1)
        per_token = 1 / size.clamp(min=1)
        return {
            "diag/overlap_ratio": Measure.of(size / ids.shape[1]),
            "diag/top1_agreement": Measure.of((ids[:, 0] == teacher.ids[:, 0]).to(log_p.dtype)),
            "diag/overlap_advantage": Measure(advantage.sum(-1) * per_token, some),
            "diag/overlap_mass_student": Measure.of(mass_p),
            "diag/overlap_mass_teacher": Measure.of(mass_q),
            "diag/support_mass": Measure.of(log_p.exp().sum(-1)),
            "diag/extreme_advantage_diff": Measure(difference * some, some),
            "reference/overlap_advantage": Measure((of_support * ratio).sum(-1), size),
            "reference/overlap_mass_student": Measure(mass_p, some),
            "reference/overlap_mass_teacher": Measure(mass_q, some),
            "verl/overlap_token_advantage": Measure(-(q * ratio).sum(-1) * per_token, some),
            "verl/teacher_mass": Measure.of(at_least_float32(teacher.logp).exp().sum(-1)),
        }


def _teacher_logp_on_student(student: TopK, teacher: TopK) -> tuple[Tensor, Tensor]:
    """Which of the student's top k the teacher also lists; its log q there, -inf elsewhere."""
    if student.ids.shape != teacher.ids.shape:
        raise ValueError(f"top-k lists differ: {student.ids.shape} and {teacher.ids.shape}")
    same = student.ids[:, :, None] == teacher.ids[:, None, :]
    log_q = torch.where(same, at_least_float32(teacher.logp)[:, None, :], -torch.inf).amax(-1)
    return same.any(-1), log_q


def _pointwise(log_p: Tensor, log_q: Tensor) -> Tensor:
    """A(v) = p (log q - log p) of Eq. 7, 0 on impossible tokens."""
    live = log_p != -torch.inf
    p, q = torch.where(live, log_p, 0.0), torch.where(live, log_q, 0.0)
    return torch.where(live, p.exp() * (q - p), 0.0)


def topk_metrics(student: TopK, teacher: TopK) -> dict[str, Measure]:
    """Metrics for a teacher that returns only its top k: exact overlap, bounds for the rest.

    A truncated quantity never has the full one's name. The bounds need no assumption:
    every unseen teacher token has at most the probability of the last listed one, and merging
    tokens into a bucket never raises a KL.

    Args:
        student: the student's top k with its log-probs.
        teacher: the teacher's top k, equal k.

    Returns:
        The `OVERLAP` and `BOUNDS` names.
    """
    with torch.no_grad():
        log_p, log_q = at_least_float32(student.logp), at_least_float32(teacher.logp)
        shared, q_on_student = _teacher_logp_on_student(student, teacher)
        known = torch.where(shared, q_on_student.exp(), 0.0).sum(-1)
        rest = -torch.expm1(log_q.logsumexp(-1).clamp(max=0.0))  # rounding may exceed 1
        last = log_q[:, -1]
        unseen = (~shared).sum(-1) * last.exp()
        p_coarse, q_coarse = with_tail(log_p, shared), with_tail(q_on_student, shared)
        max_unseen = torch.minimum(last, torch.log(rest))  # no unseen token is more probable
        tail_entropy = torch.where(rest > 0, -rest * max_unseen, 0.0)
        bounds = {
            "bound/teacher_support_mass_lower": known,
            "bound/teacher_support_mass_upper": known + torch.minimum(unseen, rest),
            "bound/reverse_kl_lower": reverse_kl(p_coarse, q_coarse),
            "bound/forward_kl_lower": forward_kl(p_coarse, q_coarse),
            "bound/teacher_entropy_lower": entropy(log_q) + tail_entropy,
        }
        return overlap_metrics(student, teacher) | {n: Measure.of(v) for n, v in bounds.items()}


def drift_metrics(trainer_logp: Tensor, sampler_logp: Tensor) -> dict[str, Measure]:
    """How far the trainer's log-probs of the sampled tokens are from the sampler's, (N,) each.

    Without staleness both are the same model, so anything beyond rounding is a bug or a precision
    gap. `drift/ratio` and its square give the effective sample size; see `drift_ess`.
    """
    with torch.no_grad():
        gap = at_least_float32(trainer_logp) - at_least_float32(sampler_logp)
        ratio = gap.exp()
        return {
            "drift/logp_gap": Measure.of(gap.abs()),
            "drift/ratio": Measure.of(ratio),
            "drift/ratio_squared": Measure.of(ratio.square()),
        }


def drift_ess(ratio: Mean, ratio_squared: Mean) -> Mean:
    """Effective fraction of samples (sum w)^2 / (n sum w^2) in (0, 1], of merged pairs."""
    if not ratio.count:
        return Mean(0.0, 0.0)
    return Mean(ratio.value**2 / ratio_squared.value * ratio.count, ratio.count)


def entropy_gap_mean(metrics: Metrics) -> Mean:
    """|E H(q) - E H(p)| from a step's merged means: the other reading of paper Eq. 8.

    The published code logs the two means alone, so this is all its plots can show. The mean of
    |H(q) - H(p)| is `diag/entropy_gap_abs` and is never smaller.
    """
    p, q = metrics["diag/student_entropy"], metrics["diag/teacher_entropy"]
    return Mean(abs(q.value - p.value) * p.count, p.count) if p.count else Mean(0.0, 0.0)


def repetition(ids: Sequence[int] | np.ndarray, *, n: int = 4) -> float:
    """Fraction of a completion's n-grams that repeat earlier ones: 0 none, towards 1 a loop.

    1 - distinct/total over token n-grams; 0 for completions shorter than n.
    """
    values = np.asarray(ids)
    if len(values) < n:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(values, n)
    return 1.0 - len(np.unique(grams, axis=0)) / len(grams)


def distinct_ngrams(completions: Sequence[np.ndarray], *, n: int = 4) -> float | None:
    """Distinct token n-grams of several completions together, as a fraction of all of them.

    1: no two alike; 1 / number of completions: all equal, and none repeats itself. None where no
    completion has n tokens.
    """
    long_enough = [np.asarray(c) for c in completions if len(c) >= n]
    if not long_enough:
        return None
    grams = np.concatenate([np.lib.stride_tricks.sliding_window_view(c, n) for c in long_enough])
    return len(np.unique(grams, axis=0)) / len(grams)


def concatenate(parts: Sequence[dict[str, Measure]]) -> dict[str, Measure]:
    """Measures of consecutive positions, all with the same names, as one of each."""
    return {
        name: Measure(*(torch.cat(field) for field in zip(*(p[name] for p in parts), strict=True)))
        for name in parts[0]
    }


def overall(measures: dict[str, Measure]) -> Metrics:
    """Sum each measure over its positions in fp64; one transfer off the device."""
    if not measures:
        return {}
    sums = torch.stack([part.double().sum() for m in measures.values() for part in m]).tolist()
    return {name: Mean(*sums[2 * i : 2 * i + 2]) for i, name in enumerate(measures)}


def position_edges(max_new_tokens: int, bins: int = 8) -> list[int]:
    """First positions of equal-width bins over 0..max_new_tokens-1, and the end: for `by_bin`.

    Fixed by the configuration, not by the data, so that bins of different steps merge.
    """
    width = max(1, math.ceil(max_new_tokens / bins))
    return [*range(0, max_new_tokens, width), max_new_tokens]


def by_bin(
    measures: dict[str, Measure],
    position: Tensor,
    length: Tensor,
    *,
    edges: Sequence[int],
    relative_bins: int = 10,
) -> Metrics:
    """Exact means by absolute position and by position relative to the completion's length.

    Args:
        measures: name to Measure of (N,).
        position: (N,) index in the completion, from 0.
        length: (N,) completion length of the position's rollout.
        edges: ascending bin starts and the end, as from `position_edges`.
        relative_bins: number of equal parts of the completion.

    Returns:
        `name@pos0-127` style means (first and last position, inclusive) and `name@rel0-10` style
        ones (percent of the length); empty bins are left out.

    Raises:
        ValueError: for a position outside the edges.
    """
    if not measures or not len(position):
        return {}
    if int(position.max()) >= edges[-1] or int(position.min()) < edges[0]:
        raise ValueError(f"positions must lie in [{edges[0]}, {edges[-1]})")
    starts = torch.tensor(edges[1:-1], device=position.device, dtype=position.dtype)
    absolute = torch.bucketize(position, starts, right=True)
    relative = position * relative_bins // length
    percent = [round(100 * i / relative_bins) for i in range(relative_bins + 1)]
    labels = [f"@pos{a}-{b - 1}" for a, b in itertools.pairwise(edges)]
    result = _sums(measures, absolute, labels)
    labels = [f"@rel{a}-{b}" for a, b in itertools.pairwise(percent)]
    return result | _sums(measures, relative, labels)


def gradient_metrics(
    norms: Tensor, position: Tensor, length: Tensor, *, edges: Sequence[int]
) -> Metrics:
    """Gradient norms by position bin (bins as in `by_bin`) and in total; see `gradient_shares`.

    A position counts with the norm of the loss's gradient at its last hidden state, the only way
    by which it reaches the weights.

    Args:
        norms: (N,) of all completion tokens of a micro-batch.
        position: (N,) index in the completion, from 0.
        length: (N,) completion length of the position's rollout.
        edges: as in `by_bin`.
    """
    measures = {GRADIENT: Measure.of(norms)}
    return overall(measures) | by_bin(measures, position, length, edges=edges)


def gradient_shares(metrics: Metrics) -> Metrics:
    """A step's metrics with each bin's gradient as a fraction of the total, which is left out."""
    total = metrics.get(GRADIENT, Mean(0.0, 0.0)).total
    rest = {n: m for n, m in metrics.items() if not n.startswith(GRADIENT)}
    bins = {n: m for n, m in metrics.items() if n.startswith(GRADIENT + "@")}
    return rest | {n: Mean(m.total, total) for n, m in bins.items() if total}


def _sums(measures: dict[str, Measure], index: Tensor, labels: list[str]) -> Metrics:
    """One Mean per name and label, from a single transfer off the device."""
    flat = torch.stack([part.double() for m in measures.values() for part in m], 1)
    sums = torch.zeros(len(labels), flat.shape[1], dtype=torch.float64, device=flat.device)
    rows = sums.index_add(0, index.long(), flat).tolist()
    return {
        name + label: Mean(row[2 * i], row[2 * i + 1])
        for label, row in zip(labels, rows, strict=True)
        for i, name in enumerate(measures)
        if row[2 * i + 1]
    }
