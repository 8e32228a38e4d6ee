"""Which prompts this teacher can teach this student on: measured, ranked, mixed, told why.

Paper section 5.2. Three things are measured a prompt, with n responses of each model: how much
more often the teacher is right (accuracies shrunk to their mean), whether the student gets there at
times (mixed outcomes), and whether the two speak alike (overlap mass, and the teacher's entropy, on
the student's own rollouts). Shapes: P prompts, n responses a prompt, k tokens a position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb
from scipy.stats import rankdata

from opd.config import Select
from opd.core import diagnostics
from opd.core.stats import Estimate, paired
from opd.data.graders import Grader
from opd.recipes.measure import tops
from opd.rng import Stream, generator
from opd.types import Prompt, Rollout, Sampler, Scores, Teacher, Want

# They separate this randomness from training's.
CHUNK = 64  # prompts sampled and scored at once
MASS = "diag/overlap_mass_student"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bench:
    """What measures: two pens, a teacher's ear, a grader.

    Attributes:
        student: samples as in training; records at least k top tokens.
        writer: the teacher's own pen; None for a teacher that only scores.
        teacher: scores the student's rollouts.
        grader: None where prompts have no ground truths.
        decode: token ids to text.
        n: responses a prompt of each.
        k: support size of the overlap.
    """

    student: Sampler
    writer: Sampler | None
    teacher: Teacher
    grader: Grader | None
    decode: Callable[[Sequence[int]], str]
    n: int
    k: int


@dataclass(frozen=True)
class Measured:
    """What was found a prompt, (P,) each; NaN where it could not be.

    Attributes:
        student: right responses of n.
        teacher: likewise.
        mass: the student's overlap mass on its own rollouts.
        student_entropy: nats a token there.
        teacher_entropy: the teacher's, at the same tokens.
    """

    student: Floats
    teacher: Floats
    mass: Floats
    student_entropy: Floats
    teacher_entropy: Floats


def measure_prompts(bench: Bench, prompts: Sequence[Prompt], key: Sequence[int]) -> Measured:
    """Sample, grade and score, a few prompts at a time."""
    parts = []
    for start in range(0, len(prompts), CHUNK):
        some = prompts[start : start + CHUNK]
        written = bench.student.sample(some, n=bench.n, key=key)
        theirs = [] if bench.writer is None else bench.writer.sample(some, n=bench.n, key=key)
        scores = bench.teacher.score(written, Want(topk=bench.k))
        outcomes = [_right(bench, r, len(some)) for r in (written, theirs)]
        parts.append(np.stack([*outcomes, *_overlap(written, scores, bench.k, len(some))]))
    return Measured(*np.concatenate(parts, axis=1))


def _right(bench: Bench, rollouts: Sequence[Rollout], count: int) -> Floats:
    """Right responses a prompt."""
    if bench.grader is None or not rollouts:
        return np.full(count, np.nan)
    texts = [bench.decode(r.ids.tolist()) for r in rollouts]
    grades = bench.grader.grade(texts, [r.prompt.answer or "" for r in rollouts])
    right: Floats = np.array([float(g.correct) for g in grades]).reshape(count, -1).sum(1)
    return right


def _overlap(
    rollouts: Sequence[Rollout], scores: Sequence[Scores], k: int, count: int
) -> list[Floats]:
    """Overlap mass and both entropies a prompt, over all tokens of its rollouts."""
    lengths = [len(r) for r in rollouts]
    owner = np.repeat(np.arange(len(rollouts)) * count // len(rollouts), lengths)
    tokens = np.bincount(owner, minlength=count)
    student = tops([(r.topk_ids, r.topk_logp) for r in rollouts], k)
    teacher = tops([(s.topk_ids, s.topk_logp) for s in scores], k)
    mass = diagnostics.overlap_metrics(student, teacher)[MASS].total.double().numpy()
    theirs = [s.entropy for s in scores]
    values = [mass, np.concatenate([r.entropy for r in rollouts])]
    values.append(
        np.full(len(owner), np.nan)
        if any(e is None for e in theirs)
        else np.concatenate([e for e in theirs if e is not None])
    )
    return [np.bincount(owner, v, minlength=count) / np.maximum(tokens, 1) for v in values]


def shrunk(right: Floats, n: int) -> Floats:
    """Accuracies of P prompts from n responses each, shrunk towards their mean.

    Posterior mean under a beta prior fitted to all prompts by moments: with intra-prompt
    correlation rho, (right + s m) / (n + s), s = (1 - rho) / rho. Where prompts differ no more than
    chance would have it (rho <= 0), everything is the mean m.
    """
    m = float(right.mean()) / n
    spread = m * (1 - m)
    if not spread > 0:
        return right / n
    rho = (float((right / n).var(ddof=1)) * n / spread - 1) / (n - 1)
    if rho <= 0:
        return np.full_like(right, m)
    strength = (1 - min(rho, 1.0)) / min(rho, 1.0)
    posterior: Floats = (right + strength * m) / (n + strength)
    return posterior


def pass_at(right: Floats, n: int, k: int) -> Floats:
    """Unbiased pass@k a prompt: some of k responses is right; NaN where nothing was graded."""
    found: Floats = 1 - comb(n - right, k) / comb(n, k)
    return np.where(np.isnan(right), np.nan, found)  # SciPy takes NaN choose k for 0


def mixed_at(right: Floats, n: int, k: int) -> Floats:
    """Unbiased chance a prompt that k responses hold a right and a wrong one."""
    found: Floats = pass_at(right, n, k) - comb(right, k) / comb(n, k)
    return found


@dataclass(frozen=True)
class Ranked:
    """Prompts by how much there is to learn on them, (P,) each; higher is better.

    Attributes:
        advantage: teacher minus student, both shrunk; NaN without grades of both.
        pass_at: the student's pass@k; NaN without grades.
        mixed: learnability: see `mixed_at`.
        score: weighted mean of percentile ranks of advantage, learnability and alignment.
    """

    advantage: Floats
    pass_at: Floats
    mixed: Floats
    score: Floats


def rank(found: Measured, cfg: Select) -> Ranked:
    """Put prompts in order; a measure that is missing has no part in it."""
    advantage = shrunk(found.teacher, cfg.n) - shrunk(found.student, cfg.n)
    mixed = mixed_at(found.student, cfg.n, cfg.k)
    ranks = {
        "advantage": _percentile(advantage),
        "learnability": _percentile(mixed),
        "alignment": _mean_of([_percentile(found.mass), _percentile(-found.teacher_entropy)]),
    }
    weights = {
        "advantage": cfg.advantage,
        "learnability": cfg.learnability,
        "alignment": cfg.alignment,
    }
    known = [name for name, values in ranks.items() if not np.isnan(values).any() and weights[name]]
    score = np.zeros(len(advantage))
    for name in known:
        score += weights[name] * ranks[name] / sum(weights[each] for each in known)
    return Ranked(advantage, pass_at(found.student, cfg.n, cfg.k), mixed, score)


def _percentile(values: Floats) -> Floats:
    """Ranks in (0, 1], ties shared; NaN if any value is."""
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    found: Floats = rankdata(values) / len(values)
    return found


def _mean_of(ranks: Sequence[Floats]) -> Floats:
    known = [r for r in ranks if not np.isnan(r).any()]
    return np.mean(known, axis=0) if known else ranks[0]


def choose(ranked: Ranked, cfg: Select, seed: int) -> tuple[list[int], list[int]]:
    """Places of the aligned prompts, best first, and of those drawn from the rest, in order.

    Never aligned: a prompt on which the teacher is not better than the student.
    """
    count = len(ranked.score)
    order = np.lexsort((np.arange(count), -ranked.score)).tolist()
    better = [i for i in order if not ranked.advantage[i] <= 0]
    wanted = max(1, round(cfg.keep * count))
    best = max(1, round((1 - cfg.ood_share) * wanted))
    aligned = better[:best]
    rest = sorted(set(range(count)) - set(aligned))
    others = min(len(rest), round((wanted - best) * len(aligned) / best))
    rng = generator(seed, Stream.SELECT_OTHERS)
    return aligned, sorted(rng.choice(rest, others, replace=False).tolist()) if others else []


@dataclass(frozen=True)
class Mixture:
    """What entropy a share of other prompts costs or saves, per token and in nats.

    Attributes:
        shares: of other prompts.
        teacher: the teacher's entropy on student rollouts at each share: what the student is drawn
            towards; NaN where the teacher does not tell.
        student: the student's own there, before training.
    """

    shares: list[float]
    teacher: list[float]
    student: list[float]


def mixture(found: Measured, aligned: Sequence[int], shares: Sequence[float]) -> Mixture:
    """Expected entropies when a share of the prompts is drawn from those not aligned."""
    inside = np.zeros(len(found.mass), dtype=bool)
    inside[list(aligned)] = True

    def at(values: Floats) -> list[float]:
        here = float(values[inside].mean())
        there = float(values[~inside].mean()) if not inside.all() else here
        return [(1 - s) * here + s * there for s in shares]

    return Mixture(list(shares), at(found.teacher_entropy), at(found.student_entropy))


@dataclass(frozen=True)
class Tried:
    """A candidate template against the configured one, paired prompt by prompt.

    Attributes:
        name: the template.
        teacher: the teacher's accuracy with it.
        mass: the student's overlap mass.
        better: difference in teacher accuracy to the configured template, with its interval.
        closer: difference in overlap mass, likewise.
    """

    name: str
    teacher: float
    mass: float
    better: Estimate
    closer: Estimate


def compare_templates(found: Mapping[str, Measured], n: int) -> tuple[str, list[Tried]]:
    """The template to use, and what was found of each; the first is the configured one.

    Another one is picked only if the teacher is more often right with it, or as often and the
    overlap mass higher: in both cases by an interval that excludes 0.
    """
    base = next(iter(found.values()))
    tried = []
    for name, each in found.items():
        known = not np.isnan(each.teacher).any()
        better = paired(base.teacher / n, each.teacher / n) if known else None
        nothing = Estimate(float("nan"), float("nan"), float("nan"), 0)
        tried.append(
            Tried(
                name,
                float(each.teacher.mean()) / n,
                float(each.mass.mean()),
                nothing if better is None else better.difference,
                paired(base.mass, each.mass).difference,
            )
        )
    right = [t for t in tried if t.better.low > 0]
    close = [t for t in tried if t.closer.low > 0 and not t.better.high < 0]
    if right:
        return max(right, key=lambda t: t.better.value).name, tried
    return (max(close, key=lambda t: t.closer.value) if close else tried[0]).name, tried
