"""Estimates with intervals for evaluations: numpy and scipy only, no torch.

Samples of one prompt are not independent, so every interval treats the prompt as the unit.
Shapes: P prompts, n samples per prompt. Intervals are two-sided at `level`; randomness comes from
`seed` alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from opd.rng import Stream, generator

Floats = NDArray[np.float64]
ROUNDING = 1e-6  # of a fraction summed in float32


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its confidence interval, and the number of independent units behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Paired:
    """Two runs on the same prompts: mean difference (b - a) and a two-sided p-value."""

    difference: Estimate
    p_value: float


def avg_at_n(correct: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean accuracy over n samples of each prompt (paper: avg@16), interval clustered by prompt.

    Korn and Graubard (1998): Clopper-Pearson at the effective sample size p(1-p)/SE^2, SE that of
    the prompt means, scaled for its degrees of freedom and at most P n; when all samples agree, P.
    Unlike a normal interval it stays inside [0, 1], never has width 0, and holds near 0 and 1.

    Args:
        correct: (P, n) of 0/1.
        level: confidence.
    """
    matrix = _matrix(correct)
    prompts, samples = matrix.shape
    mean = float(matrix.mean())
    if prompts < 2:
        return Estimate(mean, 0.0, 1.0, prompts)
    variance = float(matrix.mean(1).var(ddof=1)) / prompts
    spread = mean * (1 - mean)
    if spread > 0:
        tail = (1 + level) / 2
        t_ratio = stats.t.ppf(tail, prompts * samples - 1) / stats.t.ppf(tail, prompts - 1)
        effective = spread / variance * t_ratio**2 if variance > 0 else prompts * samples
        effective = min(max(effective, 1.0), prompts * samples)
    else:
        effective = prompts
    return Estimate(mean, *_clopper_pearson(mean, effective, level), prompts)


def mean(values: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean of one number per prompt, Student-t interval over prompts; infinite for one prompt.

    Args:
        values: (P,) such as the mean completion length of each prompt's samples.
        level: confidence.
    """
    vector = _vector(values)
    centre, count = float(vector.mean()), len(vector)
    if count < 2:
        return Estimate(centre, -math.inf, math.inf, count)
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * float(vector.std(ddof=1))
    return Estimate(centre, centre - half / count**0.5, centre + half / count**0.5, count)


def mean_fraction(values: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean of one number per prompt that lies in [0, 1]; so do the ends of its interval.

    The interval of `paired_change`, without a change: Wilson's with the quantile of Student's t and
    the effective sample size of Korn and Graubard (1998).

    Args:
        values: (P,) such as the fraction of each prompt's samples that are cut off; numbers that
            stand for a ratio (linearised) may lie outside [0, 1] as long as their mean does not.
        level: confidence.

    Raises:
        ValueError: the mean is outside [0, 1].
    """
    vector = _vector(values)
    centre, count = float(vector.mean()), len(vector)
    if not -ROUNDING <= centre <= 1 + ROUNDING:
        raise ValueError(f"a fraction is in [0, 1], not {centre}")
    centre = min(max(centre, 0.0), 1.0)
    if count < 2:
        return Estimate(centre, 0.0, 1.0, count)
    squared = float(stats.t.ppf((1 + level) / 2, count - 1)) ** 2
    return Estimate(
        centre, *_bounded(centre, float(vector.var(ddof=1)) / count, count, squared), count
    )


def pass_at_k_values(correct: ArrayLike, n: int, k: int) -> np.ndarray:
    """Unbiased pass@k of each prompt: 1 - C(n-c, k)/C(n, k); NaN where `correct` is.

    Args:
        correct: (P,) c, correct samples of n.
        n: samples per prompt.
        k: 1 to n.
    """
    # C(n-c, k)/C(n, k) as a product of k factors (n-c-i)/(n-i): exact enough at any n.
    i = np.arange(k)
    factors = (n - np.asarray(correct, dtype=float)[:, None] - i) / (n - i)
    values: np.ndarray = 1 - np.clip(factors, 0.0, None).prod(1)
    return values


def pass_at_k(
    correct: ArrayLike, k: int, *, level: float = 0.95, seed: int = 0, resamples: int = 2000
) -> Estimate:
    """Unbiased pass@k: mean over prompts of 1 - C(n-c, k)/C(n, k), c of n samples correct.

    From arXiv 2107.03374. Interval: percentile bootstrap over prompts; Clopper-Pearson's where all
    prompts have the same value (one prompt does), and a bootstrap would have width 0.

    Args:
        correct: (P, n) of 0/1.
        k: at most n.
        level: confidence.
        seed: of the bootstrap.
        resamples: bootstrap size.

    Raises:
        ValueError: for k outside 1..n.
    """
    matrix = _matrix(correct)
    n = matrix.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n = {n} samples per prompt, got k = {k}")
    values = pass_at_k_values(matrix.sum(1), n, k)
    if np.ptp(values) == 0:
        value = float(values[0])
        return Estimate(value, *_clopper_pearson(value, len(values), level), len(values))
    means = values[_resample(len(values), resamples, seed)].mean(1)
    return Estimate(float(values.mean()), *_percentiles(means, level), len(values))


def gap_recovery(
    before: ArrayLike,
    after: ArrayLike,
    teacher: ArrayLike,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = 4000,
) -> Estimate:
    """Fraction of the gap to the teacher that training closed; paper section 3.2.

    (after - before) / (teacher - before) of mean accuracies. Interval: percentile bootstrap over
    prompts, the same prompts for all three. Where the gap itself is not distinguishable from 0 the
    fraction is unbounded, and so is the interval; and it is for one prompt.

    Args:
        before: (P,) accuracy of the student at each prompt before training.
        after: (P,) after training.
        teacher: (P,) of the teacher.
        level: confidence.
        seed: of the bootstrap.
        resamples: bootstrap size.
    """
    table = np.stack([_vector(before), _vector(after), _vector(teacher)])
    means = table.mean(1)
    gap = float(means[2] - means[0])
    value = float(means[1] - means[0]) / gap if gap else math.nan
    prompts = table.shape[1]
    resampled = table[:, _resample(prompts, resamples, seed)].mean(2)
    gaps = resampled[2] - resampled[0]
    low, high = _percentiles(gaps, level)
    if prompts < 2 or low <= 0 <= high:
        return Estimate(value, -math.inf, math.inf, prompts)
    nonzero = gaps != 0
    fractions = (resampled[1] - resampled[0])[nonzero] / gaps[nonzero]
    return Estimate(value, *_percentiles(fractions, level), prompts)


def auroc(
    scores: ArrayLike, labels: ArrayLike, groups: ArrayLike | None = None, *, level: float = 0.95
) -> Estimate:
    """Probability that a positive scores above a negative (ties half), DeLong's interval.

    On the logit scale, so it stays inside (0, 1). With `groups` the variance is Obuchowski's (1997)
    for clustered data: rollouts of one prompt are one cluster. At exactly 0 or 1 the variance
    vanishes; the interval is then Clopper-Pearson's with the smaller class as the sample. NaN when
    a class is missing.

    Args:
        scores: (n,) higher means more positive, e.g. mean reward of a rollout.
        labels: (n,) 0/1, e.g. correct.
        groups: (n,) cluster of each item, e.g. the prompt's index; None: all independent.
        level: confidence.
    """
    values, truth = _vector(scores), _vector(labels) > 0.5
    cluster = (
        np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    )
    units = int(cluster.max()) + 1 if len(cluster) else 0
    m, n = int(truth.sum()), int((~truth).sum())
    if m == 0 or n == 0:
        return Estimate(math.nan, math.nan, math.nan, units)
    overall = stats.rankdata(values)
    # Placements: fraction of the other class below each positive; above each negative.
    of_positive = (overall[truth] - stats.rankdata(values[truth])) / n
    of_negative = 1 - (overall[~truth] - stats.rankdata(values[~truth])) / m
    area = float(of_positive.mean())
    if area in (0.0, 1.0):
        return Estimate(area, *_clopper_pearson(area, min(m, n), level), units)
    x = np.bincount(cluster[truth], of_positive - area, units)
    y = np.bincount(cluster[~truth], of_negative - area, units)
    with_x, with_y = len(np.unique(cluster[truth])), len(np.unique(cluster[~truth]))
    variance = (
        _unbias(with_x) * float(x @ x) / m**2
        + _unbias(with_y) * float(y @ y) / n**2
        + 2 * _unbias(units) * float(x @ y) / (m * n)
    )
    # Obuchowski's covariance part can push a tiny variance below 0.
    quantile = float(stats.norm.ppf((1 + level) / 2))
    half = quantile * math.sqrt(max(variance, 0.0)) / (area * (1 - area))
    logit = math.log(area / (1 - area))
    low, high = (1 / (1 + math.exp(-z)) for z in (logit - half, logit + half))
    return Estimate(area, low, high, units)


def paired_change(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean of b - a over prompts; every end of its interval is a change that is possible.

    Wilson's score interval (1927) of the mean of (1 + b - a) / 2, which lies in [0, 1], with the
    quantile of Student's t and the effective sample size m (1 - m) / SE^2 of Korn and Graubard
    (1998), SE that of the prompts. It has the width of the t interval where that fits, and leans
    inwards near -1 and 1. Where no prompt changed at all, each direction has the interval of no
    event in P prompts. Coverage: `tests/core/interval_table.py`, docs/metrics.md.

    Args:
        a: (P,) per-prompt accuracy, or another number in [0, 1], of one run.
        b: (P,) of the other, same prompts in the same order.
        level: confidence.

    Raises:
        ValueError: the runs differ in length, or a value is outside [0, 1].
    """
    first, second = _vector(a), _vector(b)
    if first.shape != second.shape:
        raise ValueError(f"runs have {len(first)} and {len(second)} prompts; pair them first")
    lowest, highest = min(first.min(), second.min()), max(first.max(), second.max())
    if lowest < -ROUNDING or highest > 1 + ROUNDING:
        raise ValueError("a change is of numbers in [0, 1]")
    difference = np.clip(second, 0, 1) - np.clip(first, 0, 1)
    prompts, change = len(difference), float(difference.mean())
    if prompts < 2:
        return Estimate(change, -1.0, 1.0, prompts)
    squared = float(stats.t.ppf((1 + level) / 2, prompts - 1)) ** 2
    if not difference.any():
        end = squared / (prompts + squared)
        return Estimate(0.0, -end, end, prompts)
    mean, variance = (1 + change) / 2, float(difference.var(ddof=1)) / (4 * prompts)
    low, high = _bounded(mean, variance, prompts, squared)
    return Estimate(change, 2 * low - 1, 2 * high - 1, prompts)


def paired(
    a: ArrayLike, b: ArrayLike, *, level: float = 0.95, seed: int = 0, resamples: int = 9999
) -> Paired:
    """Compare two runs on the same prompts: `paired_change`, and a sign-flip test of no change.

    The test swaps the runs of a prompt at random (exact when 2^P <= `resamples`).

    Args:
        a: (P,) per-prompt accuracy of one run.
        b: (P,) of the other, same prompts in the same order.
        level: confidence of the interval.
        seed: of the permutations.
        resamples: number of permutations.

    Raises:
        ValueError: as `paired_change`.
    """
    estimate = paired_change(a, b, level=level)
    if estimate.n < 2:
        return Paired(estimate, 1.0)
    test = stats.permutation_test(
        (_vector(b) - _vector(a),),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        rng=generator(seed, Stream.PERMUTATION_TEST),
    )
    return Paired(estimate, float(test.pvalue))


def difference_of_means(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Mean of `b` minus mean of `a`, two independent samples, with Welch's interval.

    Args:
        a: (A,) such as the accuracies of runs of one configuration, one per seed.
        b: (B,).
        level: confidence.

    Returns:
        The difference; its interval is infinite unless both samples have two values and they vary
        in one of them: without any spread nothing is known of it. `n` is A + B.
    """
    first, second = _vector(a), _vector(b)
    value, count = float(second.mean() - first.mean()), len(first) + len(second)
    if min(len(first), len(second)) < 2:
        return Estimate(value, -math.inf, math.inf, count)
    parts = [float(v.var(ddof=1)) / len(v) for v in (first, second)]
    error = sum(parts)
    if error == 0:
        return Estimate(value, -math.inf, math.inf, count)
    weights = [p**2 / (len(v) - 1) for p, v in zip(parts, (first, second), strict=True)]
    half = float(stats.t.ppf((1 + level) / 2, error**2 / sum(weights))) * error**0.5
    return Estimate(value, value - half, value + half, count)


def _matrix(correct: ArrayLike) -> Floats:
    matrix = np.asarray(correct, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"expected (prompts, samples), neither of them 0; got {matrix.shape}")
    return matrix


def _vector(values: ArrayLike) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0:
        raise ValueError(f"expected one value per unit and at least one unit; got {vector.shape}")
    return vector


def _clopper_pearson(mean: float, n: float, level: float) -> tuple[float, float]:
    hits, misses, tail = mean * n, (1 - mean) * n, (1 - level) / 2
    low = float(stats.beta.ppf(tail, hits, misses + 1)) if hits > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, hits + 1, misses)) if misses > 0 else 1.0
    return low, high


def _bounded(
    mean: float, squared_error: float, prompts: int, squared_quantile: float
) -> tuple[float, float]:
    """Wilson's interval at the effective sample size; at all prompts where they are alike."""
    size = max(1.0, mean * (1 - mean) / squared_error) if squared_error > 0 else prompts
    return _wilson(mean, size, squared_quantile)


def _wilson(mean: float, n: float, squared_quantile: float) -> tuple[float, float]:
    centre = mean + squared_quantile / (2 * n)
    half = math.sqrt(squared_quantile * (mean * (1 - mean) / n + squared_quantile / (4 * n * n)))
    scale = 1 + squared_quantile / n
    return (centre - half) / scale, (centre + half) / scale


def _unbias(count: int) -> float:
    return count / (count - 1) if count > 1 else 1.0


def _resample(size: int, resamples: int, seed: int) -> NDArray[np.int64]:
    return generator(seed, Stream.BOOTSTRAP).integers(0, size, (resamples, size))


def _percentiles(values: Floats, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
