"""Parts of docs/check.md: a run as a row, and sections on runs made otherwise or a second time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd.core.stats import Estimate
from opd.recipes.check.verdict import GO, NO_GO
from opd.reports.document import Note, Part, Section, Table
from opd_lab.pairs.changed_runs import ChangedRun, changed_runs, followed
from opd_lab.pairs.judging import Case, summarise
from opd_lab.pairs.records import count_trainings
from opd_lab.pairs.repeats import Repeat, repeatability

CASE_COLUMNS = ("run", "before", "teacher", "predicted change (90%)", "change", "verdict")
CHANGED_COLUMNS = (
    *("forecasts", "run", "advice", "predicted change then (90%)"),
    *("change then", "as it was", ""),
)
CHANGES_NOTE = (
    "A run judged 'go with changes' is no go as it is configured, and one with the change that is "
    "named. A training that was evaluated on its way is a run of each of those lengths: advice to "
    "run longer was followed where the training went as far, advice of another rate never. Each "
    "run that was made so counts once. It was right if it recovered at least a fifth of a gap of "
    "0.1."
)
REPEATS_NOTE = (
    "Runs of the study made twice (`opd lab outcomes --block repeat`), with the same models and "
    "settings, but other prompts, samples and held-out prompts. Intervals: 95%, trainings "
    "resampled. The forecast is that of worlds left out, from the prompts and first steps of the "
    "first run. If the two runs were a common value and additive errors of equal width, a forecast "
    "that knows everything but these errors would have the root of the two runs' correlation, and "
    "their mean difference over the root of 2."
)


def in_short(unseen: Sequence[Case], real: Sequence[Case], repeats: Sequence[Repeat]) -> Note:
    """How right the shipped forecast was on what it had not seen, in a few sentences."""
    groups = {"generated worlds": unseen, "real models": real}
    sentences = [_one_sentence(cases, name) for name, cases in groups.items() if cases]
    if repeats:
        whole = repeatability(repeats)[-1]
        sentences.append(
            f"Made twice, a run's change differs by {100 * whole.difference.value:.1f} points."
        )
    return Note(" ".join(sentences))


def _one_sentence(cases: Sequence[Case], name: str) -> str:
    j = summarise(cases, name)
    return (
        f"Of {j.cases} runs ({j.trainings} trainings) of {name} that the shipped forecast was not "
        f"fitted on, {j.decided:.0%} were called go or no-go: wrong {j.wrong.get(GO, 0)} of "
        f"{j.verdicts.get(GO, 0)} gos and {j.wrong.get(NO_GO, 0)} of {j.verdicts.get(NO_GO, 0)} "
        f"no-gos. 90% intervals held {j.coverage[0.9]:.0%}; mean error {100 * j.error:.1f} points."
    )


def changes_section(
    unseen: Sequence[Case], real: Sequence[Case], left_out: Sequence[Case]
) -> Section:
    """What became of runs that were changed as advised."""
    groups = {
        "other seeds, as shipped": changed_runs(unseen),
        "real models, as shipped": changed_runs(real),
        "worlds left out": changed_runs(left_out),
    }
    made = {label: followed(runs) for label, runs in groups.items()}
    summary = [
        [
            label,
            f"{len(runs)} ({count_trainings(r.case.outcome for r in runs)})",
            f"{len(made[label])} ({count_trainings(r.case.outcome for r in made[label])})",
            str(sum(r.right is True for r in made[label])),
            str(sum(r.inside is True for r in made[label])),
        ]
        for label, runs in groups.items()
    ]
    columns = ("forecasts", "go with changes (trainings)", "made as advised", "right", "inside 90%")
    parts: list[Part] = [Note(CHANGES_NOTE), Table("", columns, summary)]
    rows = [_row(r, label) for label, runs in made.items() for r in runs]
    if rows:
        parts.append(Table("", CHANGED_COLUMNS, rows))
    return Section("changes", "Go with changes, and the changed runs", parts)


def _row(r: ChangedRun, label: str) -> list[str]:
    assert r.outcome is not None
    return [
        label,
        r.case.outcome.name,
        r.change,
        f"{r.effect.value:+z.2f} ({r.effect.low:+z.2f} to {r.effect.high:+z.2f})",
        f"{r.outcome.change:+z.2f}",
        f"{r.case.outcome.change:+z.2f}",
        "" if r.right else "wrong",
    ]


def repeats_sections(repeats: Sequence[Repeat]) -> list[Section]:
    """World by world, how far two runs of one configuration agree; nothing without such runs."""
    if not repeats:
        return []
    columns = (
        "world",
        "runs (trainings)",
        "forecast and run: Spearman, difference",
        "forecast and repeat",
        "run and repeat: Spearman",
        "difference, points",
    )
    *worlds, whole = repeatability(repeats)
    rows = [
        [
            a.label,
            f"{a.runs} ({a.trainings})",
            f"{number(a.forecast)}, {100 * a.forecast_error:.1f}",
            f"{number(a.forecast_again)}, {100 * a.forecast_error_again:.1f}",
            f"{number(a.again.value)} ({number(a.again.low)} to {number(a.again.high)})",
            "{:.1f} ({:.1f} to {:.1f})".format(
                *(100 * x for x in (a.difference.value, a.difference.low, a.difference.high))
            ),
        ]
        for a in (*worlds, whole)
    ]
    limits = (
        f"Such a forecast would have a rank correlation of about {number(whole.best_correlation)} "
        f"with all of these runs, and an error of {100 * whole.best_error:.1f} points."
    )
    title = "What the same run made twice tells"
    note = Note(f"{REPEATS_NOTE} {limits}")
    return [Section("repeats", title, [note, Table("", columns, rows)])]


def estimated(e: Estimate) -> str:
    """A number with its interval; a dash where there is none."""
    return f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})" if np.isfinite(e.value) else "-"


def number(value: float, *, signed: bool = False) -> str:
    """Two decimals; a dash for what is not known."""
    if not np.isfinite(value):
        return "-"
    return f"{value:+z.2f}" if signed else f"{value:.2f}"


def case_row(case: Case) -> list[str]:
    """A run under `CASE_COLUMNS`."""
    change = case.forecast.change
    assert change is not None
    return [
        case.outcome.name,
        f"{case.outcome.before:.2f}",
        f"{case.outcome.teacher:.2f}",
        f"{change.value:+z.2f} ({change.low:+z.2f} to {change.high:+z.2f})",
        f"{case.outcome.change:+z.2f}",
        case.verdict.replace(NO_GO, "no-go"),
    ]
