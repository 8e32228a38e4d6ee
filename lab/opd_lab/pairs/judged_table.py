"""The table of docs/check.md that holds forecasts against outcomes, world by world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opd.core.stats import Estimate
from opd.recipes.check.verdict import GO, NO_GO
from opd.reports.document import Note, Part, Table
from opd_lab.pairs.judging import Case, Judgement, by_world, rank_correlation, summarise
from opd_lab.pairs.page_parts import estimated, number
from opd_lab.pairs.resampling import mean_distance, resample_trainings

ALL = "all"
MIN_TRAININGS = 10  # of a world whose intervals are held against `CLAIMED`
CLAIMED = {"rank correlation": 0.85, "coverage": 0.84, "error": 0.1}  # the last one at most
COLUMNS = (
    *("world", "runs (trainings)", "Spearman", "continuation gain alone", "AUROC, recovers half"),
    *("coverage of 90%", "bias, points", "error, points", "error of continuation gain"),
    *("wrong go", "wrong no-go", "go or no-go"),
)


def judged(cases: Sequence[Case], note: str) -> list[Part]:
    """A row per world, the worst first, and one of all; intervals resample trainings."""
    judgements = [*by_world(cases), summarise(cases, ALL)]
    measured = {j.label: intervals(_of_world(cases, j.label)) for j in judgements}
    rows = [_row(j, measured[j.label]) for j in judgements]
    large = [measured[j.label] for j in judgements[:-1] if j.trainings >= MIN_TRAININGS]
    notes = [note, "Intervals: 95%, trainings resampled, with all their lengths."]
    if large:
        notes.append(_held_against_claims(large))
    return [Note(" ".join(notes)), Table("", COLUMNS, rows)]


def intervals(cases: Sequence[Case]) -> dict[str, Estimate]:
    """The numbers of `CLAIMED` with their 95 % intervals."""
    predicted = np.array([case.predicted for case in cases])
    changes = np.array([case.outcome.change for case in cases])
    inside = np.array([case.inside(0.9) for case in cases], dtype=float)
    trainings = [case.outcome.training for case in cases]
    return {
        "rank correlation": resample_trainings(rank_correlation, predicted, changes, trainings),
        "coverage": resample_trainings(lambda a, b: float(a.mean()), inside, inside, trainings),
        "error": resample_trainings(mean_distance, predicted, changes, trainings),
    }


def _of_world(cases: Sequence[Case], label: str) -> list[Case]:
    return [case for case in cases if label in (ALL, case.outcome.world)]


def _held_against_claims(measured: Sequence[Mapping[str, Estimate]]) -> str:
    """In how many worlds an interval is on the right side of what is claimed, or on the wrong."""
    parts = []
    for name, claimed in CLAIMED.items():
        below = sum(m[name].high < claimed for m in measured)
        above = sum(m[name].low > claimed for m in measured)
        wrong, right = (above, below) if name == "error" else (below, above)
        shown = f"{100 * claimed:g} points" if name == "error" else f"{claimed:g}"
        sides = ("above", "below") if name == "error" else ("below", "above")
        parts.append(
            f"of the {name} lies {sides[0]} {shown} in {wrong}, {sides[1]} in {right} and includes "
            f"it in {len(measured) - wrong - right}"
        )
    return (
        f"Of the {len(measured)} worlds with at least {MIN_TRAININGS} trainings, the interval "
        f"{'; '.join(parts)}."
    )


def _row(j: Judgement, measured: Mapping[str, Estimate]) -> list[str]:
    error = measured["error"]
    return [
        j.label,
        f"{j.cases} ({j.trainings})",
        estimated(measured["rank correlation"]),
        number(j.baselines["continuation_gain"]),
        f"{estimated(j.auroc)}, {j.with_gap} runs",
        estimated(measured["coverage"]),
        f"{100 * j.bias:+z.1f}",
        f"{100 * error.value:.1f} ({100 * error.low:.1f} to {100 * error.high:.1f})",
        f"{100 * j.gain_error:.1f}",
        f"{j.wrong.get(GO, 0)} of {j.verdicts.get(GO, 0)}",
        f"{j.wrong.get(NO_GO, 0)} of {j.verdicts.get(NO_GO, 0)}",
        f"{j.decided:.0%}",
    ]
