"""Intervals of a measure over runs, whose lengths of one training are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opd.core.stats import Estimate
from opd.rng import generator
from opd_lab.streams import WorldStream

RESAMPLES = 2000


def resample_trainings(
    measure: Callable[[np.ndarray, np.ndarray], float],
    first: np.ndarray,
    second: np.ndarray,
    trainings: Sequence[tuple[str, int]],
) -> Estimate:
    """A measure of two arrays with the 95 % interval of resampled trainings, all their lengths.

    Args:
        measure: of the values of some runs; one that is not finite does not count.
        first: a value per run.
        second: another one.
        trainings: that the runs are of.
    """
    members = [np.flatnonzero([t == one for t in trainings]) for one in dict.fromkeys(trainings)]
    rng = generator(0, WorldStream.RESAMPLING)
    values = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(len(members), size=len(members))
        rows = np.concatenate([members[i] for i in chosen])
        values.append(measure(first[rows], second[rows]))
    known = [value for value in values if np.isfinite(value)] or [float("nan")]
    low, high = np.quantile(known, [0.025, 0.975])
    return Estimate(measure(first, second), float(low), float(high), len(members))


def mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference."""
    return float(np.abs(a - b).mean())
