"""Which prompts this teacher can teach this student on: measured, ranked, chosen.

Paper section 5.2. Three things are measured per prompt, with n completions of each model: how much
more accurate the teacher is (accuracies shrunk to their mean), whether the student is correct at
times (mixed outcomes), and whether the two models agree (overlap mass, and the teacher's entropy,
on the student's own rollouts). Shapes: P prompts, n completions per prompt, k tokens per position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from opd.core import diagnostics
from opd.core.stats import Estimate, paired, pass_at_k_values
from opd.data.graders import Grader, grade_for_accuracy
from opd.recipes.measure import tops
from opd.rng import Stream, generator
from opd.types import Prompt, Rollout, Sampler, Scores, Teacher, Want

CHUNK = 64  # prompts sampled and scored at once
# Of the ranks in a prompt's score. The teacher's advantage is what there is to learn. The two
# others say how well it can be learned; where that was measured (E7), they did not improve on it.
WEIGHTS = {"advantage": 1.0, "learnability": 0.5, "alignment": 0.5}
# Of the kept prompts, drawn from the rest: the paper mixes to hold the student's entropy, without a
# ratio. A quarter cost .02 of accuracy after 20 steps (E7). The prompt file says which they are.
OTHERS_FRACTION = 0.25
PASS_K = 4  # of pass@k: a usual n per prompt in training, half of select.n's default
OVERLAP_MASS = "diag/overlap_mass_student"
UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"), 0)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MeasurementSetup:
    """The models and the grader that prompts are measured with.

    Attributes:
        student: samples as in training; records at least k top tokens.
        teacher_sampler: samples the teacher; None for a teacher that only scores.
        teacher: scores the student's rollouts.
        grader: None where prompts have no ground truths.
        decode: token ids to text.
        n: completions per prompt of each model.
        k: support size of the overlap.
    """

    student: Sampler
    teacher_sampler: Sampler | None
    teacher: Teacher
    grader: Grader | None
    decode: Callable[[Sequence[int]], str]
    n: int
    k: int


@dataclass(frozen=True)
class Measurements:
    """Measurements of P prompts, (P,) each; NaN where one is not possible.

    Attributes:
        student_correct: correct completions of n.
        teacher_correct: likewise.
        overlap_mass: of the student on its own rollouts.
        student_entropy: nats per token there.
        teacher_entropy: the teacher's, at the same tokens.
    """

    student_correct: Floats
    teacher_correct: Floats
    overlap_mass: Floats
    student_entropy: Floats
    teacher_entropy: Floats


def measure_prompts(
    setup: MeasurementSetup, prompts: Sequence[Prompt], key: Sequence[int]
) -> Measurements:
    """Sample, grade and score, a few prompts at a time.

    Args:
        setup: models and grader.
        prompts: P prompts.
        key: of the random numbers of both models.
    """
    parts = []
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        rollouts = setup.student.sample(chunk, n=setup.n, key=key)
        teacher_rollouts = (
            []
            if setup.teacher_sampler is None
            else setup.teacher_sampler.sample(chunk, n=setup.n, key=key)
        )
        scores = setup.teacher.score(rollouts, Want(topk=setup.k))
        outcomes = [_count_correct(setup, r, len(chunk)) for r in (rollouts, teacher_rollouts)]
        parts.append(np.stack([*outcomes, *_overlap(rollouts, scores, setup.k, len(chunk))]))
    return Measurements(*np.concatenate(parts, axis=1))


def _count_correct(setup: MeasurementSetup, rollouts: Sequence[Rollout], count: int) -> Floats:
    """Correct completions of each of `count` prompts."""
    if setup.grader is None or not rollouts:
        return np.full(count, np.nan)
    grades = grade_for_accuracy(setup.grader, rollouts, setup.decode)
    correct: Floats = grades.reshape(count, -1).sum(1)
    return correct


def _overlap(
    rollouts: Sequence[Rollout], scores: Sequence[Scores], k: int, count: int
) -> list[Floats]:
    """Overlap mass and both entropies per prompt, over all tokens of its rollouts."""
    lengths = [len(r) for r in rollouts]
    prompt_of_token = np.repeat(np.arange(len(rollouts)) * count // len(rollouts), lengths)
    tokens = np.bincount(prompt_of_token, minlength=count)
    student = tops([(r.topk_ids, r.topk_logp) for r in rollouts], k)
    teacher = tops([(s.topk_ids, s.topk_logp) for s in scores], k)
    mass = diagnostics.overlap_metrics(student, teacher)[OVERLAP_MASS].total.double().numpy()
    teacher_entropies = [s.entropy for s in scores if s.entropy is not None]
    values = (
        mass,
        np.concatenate([r.entropy for r in rollouts]),
        np.concatenate(teacher_entropies)
        if len(teacher_entropies) == len(scores)
        else np.full(len(prompt_of_token), np.nan),
    )
    return [
        np.bincount(prompt_of_token, v, minlength=count) / np.maximum(tokens, 1) for v in values
    ]


def shrink(correct: Floats, n: int) -> Floats:
    """Accuracies of P prompts from n completions each, shrunk towards their mean.

    Posterior mean under a beta prior fitted to all prompts by moments: with intra-prompt
    correlation rho, (correct + s m) / (n + s), s = (1 - rho) / rho. Where prompts differ no more
    than chance would have it (rho <= 0), everything is the mean m.

    Args:
        correct: (P,) correct completions of n.
        n: completions per prompt.
    """
    m = float(correct.mean()) / n
    spread = m * (1 - m)
    if not spread > 0:
        return correct / n
    rho = (float((correct / n).var(ddof=1)) * n / spread - 1) / (n - 1)
    if rho <= 0:
        return np.full_like(correct, m)
    strength = (1 - min(rho, 1.0)) / min(rho, 1.0)
    posterior: Floats = (correct + strength * m) / (n + strength)
    return posterior


def mixed_probability(correct: Floats, n: int, k: int) -> Floats:
    """Unbiased probability per prompt that k completions hold a correct and an incorrect one."""
    some_correct = pass_at_k_values(correct, n, k)
    some_incorrect = pass_at_k_values(n - correct, n, k)
    mixed: Floats = some_correct + some_incorrect - 1
    return mixed


@dataclass(frozen=True)
class Ranking:
    """Prompts by how much there is to learn on them, (P,) each; higher is better.

    Attributes:
        advantage: teacher minus student accuracy, both shrunk; NaN without grades of both.
        pass_at_k: the student's; NaN without grades.
        mixed: learnability: see `mixed_probability`.
        score: weighted mean of percentile ranks of advantage, learnability and alignment.
    """

    advantage: Floats
    pass_at_k: Floats
    mixed: Floats
    score: Floats


def pass_k(n: int) -> int:
    """K of pass@k from n completions per prompt."""
    return min(PASS_K, n)


def rank_prompts(
    measurements: Measurements, n: int, weights: Mapping[str, float] = WEIGHTS
) -> Ranking:
    """Score prompts; a measure that is missing has no part in the score.

    Args:
        measurements: of P prompts.
        n: completions per prompt.
        weights: of the ranks by `advantage`, `learnability` and `alignment`.
    """
    student, k = measurements.student_correct, pass_k(n)
    advantage = shrink(measurements.teacher_correct, n) - shrink(student, n)
    mixed = mixed_probability(student, n, k)
    ranks = {
        "advantage": _percentile(advantage),
        "learnability": _percentile(mixed),
        "alignment": _mean_of_known(
            [_percentile(measurements.overlap_mass), _percentile(-measurements.teacher_entropy)]
        ),
    }
    known = [name for name, values in ranks.items() if not np.isnan(values).any() and weights[name]]
    score = np.zeros(len(advantage))
    for name in known:
        score += weights[name] * ranks[name] / sum(weights[each] for each in known)
    return Ranking(advantage, pass_at_k_values(student, n, k), mixed, score)


def _percentile(values: Floats) -> Floats:
    """Ranks in (0, 1], equal for ties; NaN if any value is."""
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    ranks: Floats = rankdata(values) / len(values)
    return ranks


def _mean_of_known(ranks: Sequence[Floats]) -> Floats:
    known = [r for r in ranks if not np.isnan(r).any()]
    return np.mean(known, axis=0) if known else ranks[0]


def choose_prompts(
    ranking: Ranking, keep: float, seed: int, others_fraction: float = OTHERS_FRACTION
) -> tuple[list[int], list[int]]:
    """Indices of the aligned prompts, best first, and of those drawn from the rest, in order.

    Never aligned: a prompt on which the teacher is not better than the student.

    Args:
        ranking: of P prompts.
        keep: fraction of them to keep.
        seed: of the draw.
        others_fraction: of the kept prompts, to draw from the rest.
    """
    count = len(ranking.score)
    order = np.lexsort((np.arange(count), -ranking.score)).tolist()
    better = [i for i in order if not ranking.advantage[i] <= 0]
    kept = max(1, round(keep * count))
    max_aligned = max(1, round((1 - others_fraction) * kept))
    aligned = better[:max_aligned]
    rest = sorted(set(range(count)) - set(aligned))
    others = min(len(rest), round((kept - max_aligned) * len(aligned) / max_aligned))
    rng = generator(seed, Stream.SELECT_OTHERS)
    return aligned, sorted(rng.choice(rest, others, replace=False).tolist()) if others else []


@dataclass(frozen=True)
class Mixture:
    """Entropy on student rollouts by the fraction of prompts from the rest, nats per token.

    Attributes:
        fractions: of prompts from the rest.
        teacher: the teacher's entropy at each fraction: what the student is drawn towards; NaN
            where the teacher does not report it.
        student: the student's own, before training.
    """

    fractions: list[float]
    teacher: list[float]
    student: list[float]


def mixture_entropy(
    measurements: Measurements, aligned: Sequence[int], fractions: Sequence[float]
) -> Mixture:
    """Expected entropies if a fraction of the prompts is drawn from those not aligned."""
    inside = np.zeros(len(measurements.overlap_mass), dtype=bool)
    inside[list(aligned)] = True

    def interpolate(values: Floats) -> list[float]:
        at_aligned = float(values[inside].mean())
        at_rest = float(values[~inside].mean()) if not inside.all() else at_aligned
        return [(1 - f) * at_aligned + f * at_rest for f in fractions]

    return Mixture(
        list(fractions),
        interpolate(measurements.teacher_entropy),
        interpolate(measurements.student_entropy),
    )


@dataclass(frozen=True)
class TemplateResult:
    """A candidate template compared with the configured one, paired prompt by prompt.

    Attributes:
        name: the template.
        teacher_accuracy: with it.
        overlap_mass: of the student with it.
        accuracy_difference: in teacher accuracy to the configured template, with its interval.
        overlap_difference: in overlap mass, likewise.
    """

    name: str
    teacher_accuracy: float
    overlap_mass: float
    accuracy_difference: Estimate
    overlap_difference: Estimate


def compare_templates(
    measurements: Mapping[str, Measurements], n: int
) -> tuple[str, list[TemplateResult]]:
    """The template to use, and the result of each.

    Another one than the configured is chosen only if the teacher is more accurate with it, or as
    accurate and the overlap mass higher: in both cases by an interval that excludes 0.

    Args:
        measurements: by template; the first is the configured one.
        n: completions per prompt.
    """
    base = next(iter(measurements.values()))
    results = []
    for name, each in measurements.items():
        known = not np.isnan(each.teacher_correct).any()
        results.append(
            TemplateResult(
                name,
                float(each.teacher_correct.mean()) / n,
                float(each.overlap_mass.mean()),
                paired(base.teacher_correct / n, each.teacher_correct / n).difference
                if known
                else UNKNOWN,
                paired(base.overlap_mass, each.overlap_mass).difference,
            )
        )
    accurate = [r for r in results if r.accuracy_difference.low > 0]
    if accurate:
        return max(accurate, key=lambda r: r.accuracy_difference.value).name, results
    closer = [
        r for r in results if r.overlap_difference.low > 0 and not r.accuracy_difference.high < 0
    ]
    chosen = max(closer, key=lambda r: r.overlap_difference.value) if closer else results[0]
    return chosen.name, results
