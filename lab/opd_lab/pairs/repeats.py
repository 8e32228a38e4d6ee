"""The same run twice, with other prompts and samples: what no forecast can know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opd.core.stats import Estimate
from opd_lab.pairs.design import REPEAT
from opd_lab.pairs.judging import Case, rank_correlation
from opd_lab.pairs.records import FOLDER, load_rows, worlds_of
from opd_lab.pairs.resampling import mean_distance, resample_trainings

MEAN_OF_DIFFERENCE = 2**0.5  # of two errors of equal width, in units of the mean of one


@dataclass(frozen=True)
class Repeat:
    """A run that was made twice.

    Attributes:
        case: the first time, with its forecast.
        again: change of accuracy the second time.
    """

    case: Case
    again: float


@dataclass(frozen=True)
class Repeatability:
    """How far two runs of one configuration agree, beside the forecast's agreement with both.

    Attributes:
        label: world, or all of them.
        runs: made twice.
        trainings: that they come from.
        forecast: rank correlation of the forecast with the change of the first run.
        forecast_error: mean absolute difference of the two.
        forecast_again: rank correlation of the forecast with the change of the second run.
        forecast_error_again: mean absolute difference of the two.
        again: rank correlation of the two changes.
        difference: mean absolute difference of the two changes.
    """

    label: str
    runs: int
    trainings: int
    forecast: float
    forecast_error: float
    forecast_again: float
    forecast_error_again: float
    again: Estimate
    difference: Estimate

    @property
    def best_correlation(self) -> float:
        """Of a forecast that knows all but additive errors: the root of the two runs' own."""
        return float(max(self.again.value, 0.0) ** 0.5)

    @property
    def best_error(self) -> float:
        """Of such a forecast, if errors are normal."""
        return self.difference.value / MEAN_OF_DIFFERENCE


def load_repeats(cases: Sequence[Case], folder: Path = FOLDER) -> list[Repeat]:
    """Those of some cases whose runs were repeated, by the records of the block `repeat`.

    Raises:
        ValueError: a run was repeated with models of other weights.
    """
    rows = {row["index"]: row for row in load_rows(REPEAT, folder) if "accuracy" in row}
    repeats = []
    for case in cases:
        facts, steps = case.outcome.facts, str(case.outcome.run.steps)
        row = rows.get(facts["index"]) if facts["block"] == "fit" else None
        if row is None or steps not in row["accuracy"]:
            continue
        if row["weights"] != facts["weights"]:
            raise ValueError(f"run {facts['index']} was repeated with other weights")
        accuracy = {moment: float(values[0]) for moment, values in row["accuracy"].items()}
        repeats.append(Repeat(case, accuracy[steps] - accuracy["before"]))
    return repeats


def repeatability(repeats: Sequence[Repeat]) -> list[Repeatability]:
    """World by world, the least repeatable first, and of all together at the end."""
    worlds = worlds_of(r.case.outcome for r in repeats)
    each = [_agree([r for r in repeats if r.case.outcome.world == w], w) for w in worlds]
    known_first = sorted(each, key=lambda a: (np.isnan(a.again.value), a.again.value))
    return [*known_first, _agree(repeats, "all")]


def _agree(repeats: Sequence[Repeat], label: str) -> Repeatability:
    first = np.array([r.case.outcome.change for r in repeats])
    again = np.array([r.again for r in repeats])
    predicted = np.array([r.case.predicted for r in repeats])
    trainings = [r.case.outcome.training for r in repeats]
    return Repeatability(
        label=label,
        runs=len(repeats),
        trainings=len(set(trainings)),
        forecast=rank_correlation(predicted, first),
        forecast_error=mean_distance(predicted, first),
        forecast_again=rank_correlation(predicted, again),
        forecast_error_again=mean_distance(predicted, again),
        again=resample_trainings(rank_correlation, first, again, trainings),
        difference=resample_trainings(mean_distance, first, again, trainings),
    )
