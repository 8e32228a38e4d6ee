"""What making a part of the run itself would tell of its end, beside the forecast before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opd_lab.pairs.judging import Case, rank_correlation
from opd_lab.pairs.records import Outcome

PARTS = (0.25, 0.5, 0.75)  # of a run's steps


@dataclass(frozen=True)
class Training:
    """A whole training, with its forecast and its accuracy on the way.

    Attributes:
        world: name of the setting.
        change: of accuracy, by all steps.
        predicted: before it.
        on_the_way: change by each part of `PARTS`; NaN where it was not evaluated.
    """

    world: str
    change: float
    predicted: float
    on_the_way: tuple[float, ...]


def whole_trainings(cases: Sequence[Case]) -> list[Training]:
    """One of each training, from the cases of all its lengths."""
    by_training: dict[tuple[str, int], list[Case]] = {}
    for case in cases:
        by_training.setdefault(case.outcome.training, []).append(case)
    trainings = []
    for lengths in by_training.values():
        longest = max(lengths, key=lambda case: case.outcome.run.steps)
        outcomes = [case.outcome for case in lengths]
        parts = tuple(_change_by(part, longest.outcome, outcomes) for part in PARTS)
        outcome = longest.outcome
        trainings.append(Training(outcome.world, outcome.change, longest.predicted, parts))
    return trainings


def _change_by(part: float, whole: Outcome, lengths: Sequence[Outcome]) -> float:
    """Change of accuracy by a part of a run's steps; NaN where it was not evaluated there."""
    for outcome in lengths:
        if outcome.run.steps == part * whole.run.steps:
            return outcome.change
    return float("nan")


def rank_and_error(
    predicted: Sequence[float], changes: Sequence[float]
) -> tuple[float, float] | None:
    """Rank correlation and mean absolute difference; None where too few are known.

    Args:
        predicted: change of each training; NaN where there is none.
        changes: by all steps.
    """
    x, y = np.asarray(predicted), np.asarray(changes)
    known = np.isfinite(x)
    if known.sum() < 3:
        return None
    return rank_correlation(x, y), float(np.abs(x - y)[known].mean())
