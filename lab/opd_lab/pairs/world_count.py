"""Does the forecast err less on an unknown world if it was fitted on more worlds?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opd.recipes.check.forecast import predict
from opd.reports.document import Note, Section, Table
from opd_lab.forecast_fit import TERMS, fit_means
from opd_lab.pairs.judging import fit_rows, rank_correlation
from opd_lab.pairs.page_parts import number
from opd_lab.pairs.records import Outcome, worlds_of
from opd_lab.pairs.resampling import mean_distance

COUNTS = (1, 2, 4, 6)  # of worlds in the fit; all that are left are the last row
DRAWS, STRIDE = 3, 3  # sets of worlds per world that is left out, and where each begins
NOTE = (
    "Forecasts for each generated world of the study, fitted on some of the others: "
    f"{DRAWS} sets of neighbours in alphabetical order, one set where all others are in. Means "
    "over the fits, and the lowest rank correlation, which is of fewer fits in the last row. If "
    "the error hardly falls from row to row, more worlds of this kind would not help much."
)


@dataclass(frozen=True)
class WorldCount:
    """Forecasts of worlds that were left out, fitted on so many others; means over them.

    Attributes:
        worlds: in each fit.
        fits: how many were made.
        spearman: rank correlation in the world that was left out.
        worst: the lowest of them.
        error: mean absolute difference of predicted and real change.
    """

    worlds: int
    fits: int
    spearman: float
    worst: float
    error: float


def by_world_count(outcomes: Sequence[Outcome]) -> list[WorldCount]:
    """Fits on few worlds, and on all but one.

    Args:
        outcomes: of the study's worlds.
    """
    worlds = worlds_of(outcomes)
    most = len(worlds) - 1
    counts = [c for c in COUNTS if c < most] + [most]
    return [_of_count(outcomes, worlds, count) for count in counts if count]


def _of_count(outcomes: Sequence[Outcome], worlds: Sequence[str], count: int) -> WorldCount:
    correlations, errors = [], []
    for i, world in enumerate(worlds):
        others = [*worlds[i + 1 :], *worlds[:i]]
        starts = range(0, DRAWS * STRIDE, STRIDE) if count < len(others) else [0]
        tested = [o for o in outcomes if o.world == world]
        changes = np.array([o.change for o in tested])
        for start in starts:
            chosen = {others[(start + j) % len(others)] for j in range(count)}
            model = fit_means(fit_rows([o for o in outcomes if o.world in chosen]), TERMS)
            forecasts = [predict(model, o.features, o.run).change for o in tested]
            predicted = np.array([np.nan if f is None else f.value for f in forecasts])
            known = np.isfinite(predicted)
            correlations.append(rank_correlation(predicted, changes))
            errors.append(mean_distance(predicted[known], changes[known]))
    return WorldCount(
        count,
        len(errors),
        float(np.nanmean(correlations)),
        float(np.nanmin(correlations)),
        float(np.mean(errors)),
    )


def count_section(counts: Sequence[WorldCount]) -> list[Section]:
    """The section of docs/check.md; none without fits."""
    if not counts:
        return []
    rows = [
        [str(c.worlds), str(c.fits), number(c.spearman), number(c.worst), f"{100 * c.error:.1f}"]
        for c in counts
    ]
    columns = ("worlds in the fit", "fits", "Spearman", "worst Spearman", "error, points")
    title = "Fitted on fewer worlds"
    return [Section("worlds-in-fit", title, [Note(NOTE), Table("", columns, rows)])]
