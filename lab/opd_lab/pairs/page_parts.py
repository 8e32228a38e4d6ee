"""Sections of docs/check.md on runs made otherwise: with advised changes, and a second time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd.reports.document import Note, Part, Section, Table
from opd_lab.pairs.changed_runs import ChangedRun, changed_runs
from opd_lab.pairs.judging import Case
from opd_lab.pairs.repeats import Repeat, repeatability

CHANGES_NOTE = (
    "A run judged 'go with changes' is no go as it is configured, and one with the change that is "
    "named. A training that was evaluated on its way is a run of each of those lengths: advice to "
    "run longer was followed where the training went as far. The changed run was right if it "
    "recovered at least a fifth of a gap of 0.1."
)
REPEATS_NOTE = (
    "Runs of the study made twice, with the same models and settings, but other prompts, samples "
    "and held-out prompts. How far two such runs differ, no forecast can know. One that knew all "
    "the rest would have about the root of their rank correlation and, if errors are normal, "
    "their mean difference over the root of 2: the last two columns. The forecast is that of "
    "worlds left out."
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
    summary = Table(
        "",
        ("forecasts", "go with changes", "made as advised", "right", "inside 90%"),
        [
            [label, str(len(runs)), str(len(made)), *_counts(made)]
            for label, runs in groups.items()
            for made in [[r for r in runs if r.outcome is not None]]
        ],
    )
    made = [r for runs in groups.values() for r in runs if r.outcome is not None]
    columns = ("run", "advice", "predicted change then (90%)", "change then", "as it was", "")
    parts: list[Part] = [Note(CHANGES_NOTE), summary]
    if made:
        parts.append(Table("", columns, [_row(r) for r in made]))
    return Section("changes", "Go with changes, and the changed runs", parts)


def _counts(made: Sequence[ChangedRun]) -> list[str]:
    return [str(sum(r.right is True for r in made)), str(sum(r.inside is True for r in made))]


def _row(r: ChangedRun) -> list[str]:
    assert r.outcome is not None
    return [
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
        "forecast: Spearman, error",
        "the run made twice: Spearman, difference",
        "limit of Spearman",
        "limit of the error",
    )
    rows = [
        [
            a.label,
            f"{a.runs} ({a.trainings})",
            f"{number(a.forecast)}, {100 * a.forecast_error:.1f}",
            f"{number(a.again)}, {100 * a.difference:.1f}",
            number(a.best_correlation),
            f"{100 * a.best_error:.1f}",
        ]
        for a in repeatability(repeats)
    ]
    title = "What the same run made twice tells"
    return [Section("repeats", title, [Note(REPEATS_NOTE), Table("", columns, rows)])]


def number(value: float, *, signed: bool = False) -> str:
    """Two decimals; a dash for what is not known."""
    if not np.isfinite(value):
        return "-"
    return f"{value:+z.2f}" if signed else f"{value:.2f}"
