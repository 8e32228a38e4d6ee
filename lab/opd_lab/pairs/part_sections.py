"""Sections of docs/check.md on checks that make half of a run first."""

from __future__ import annotations

from collections.abc import Sequence

from opd.recipes.check.verdict import GO, NO_GO
from opd.reports.document import Note, Part, Section, Table
from opd_lab.pairs.design import HALF_SEEN
from opd_lab.pairs.judged_table import judged
from opd_lab.pairs.judging import Case, summarise
from opd_lab.pairs.part_outcomes import steps_made

HALF = 0.5  # of the steps, which a check makes
WRONG_COLUMNS = (
    *("run", "before", "teacher", "change by the part", "predicted change", "change", "verdict"),
)
MEASURED = (
    "Runs of the block `half`: models, prompts and samples of their own, made after the forecast "
    "had been committed. A check of one made the pilot, then went on with the run's own "
    "steps up to half of them, and sampled answers to its 128 prompts again: what `opd check` does "
    "by itself where its time allows it."
)
SEEN = (
    f"The first {HALF_SEEN} trainings of the block. In them a defect was found and corrected: the "
    "change by the part had been extrapolated otherwise than in the fit. No coefficient was fitted "
    "on them, but they do not judge the corrected form."
)
REPEATED = (
    "Every world is evaluated with a model fitted on the other worlds. The part is that of the "
    "same run made a second time (`--block repeat`), with other prompts and samples; a check has "
    "them in common with the run, so these errors are rather too large."
)


def in_short(cases: Sequence[Case]) -> str:
    """How right the shipped forecast was after a part of the run; empty without such runs."""
    later = [case for case in cases if not was_seen(case)]
    if not later:
        return ""
    j = summarise(later, "")
    return (
        f"Where the check made half of the run first ({j.cases} runs, {j.trainings} "
        f"trainings, made after the forecast), {j.decided:.0%} were called go or no-go: wrong "
        f"{j.wrong.get(GO, 0)} of {j.verdicts.get(GO, 0)} gos and {j.wrong.get(NO_GO, 0)} of "
        f"{j.verdicts.get(NO_GO, 0)} no-gos; 90% intervals held {j.coverage[0.9]:.0%}; mean error "
        f"{100 * j.error:.1f} points."
    )


def was_seen(case: Case) -> bool:
    """Whether a run of the block `half` was known when the forecast got its last form."""
    return bool(case.outcome.facts["index"] < HALF_SEEN)


def wrong_verdicts(cases: Sequence[Case]) -> list[Part]:
    """The wrong ones, a line each; that there is none, if so."""
    rows = [
        [
            case.outcome.name,
            f"{case.outcome.before:.2f}",
            f"{case.outcome.teacher:.2f}",
            f"{case.outcome.features['part_resampled'].value:+z.2f}",
            f"{case.predicted:+z.2f}",
            f"{case.outcome.change:+z.2f}",
            case.verdict.replace(NO_GO, "no-go"),
        ]
        for case in cases
        if not case.right
    ]
    note = "Wrong gos and no-gos:" if rows else "No go or no-go was wrong."
    return [Note(note), *([Table("", WRONG_COLUMNS, rows)] if rows else [])]


def part_sections(measured: Sequence[Case], left_out: Sequence[Case]) -> list[Section]:
    """Of the shipped forecast on fresh runs, and of worlds left out; those that have any cases.

    Args:
        measured: fresh runs with a part made by the check, judged by the shipped forecast.
        left_out: runs of the study with the part of their repeat, each judged without its world.
    """
    sections = []
    title = "With half of the run made: the shipped forecast on runs made after it"
    groups: list[tuple[str, str, str, list[Case]]] = [
        ("half", title, MEASURED, [case for case in measured if not was_seen(case)]),
        ("half-seen", "On runs made before", SEEN, [case for case in measured if was_seen(case)]),
    ]
    for key, title, note, cases in groups:
        if cases:
            sections.append(Section(key, title, [*judged(cases, note), *wrong_verdicts(cases)]))
    halves = [case for case in left_out if abs(steps_made(case.outcome) - HALF) < 0.01]
    if halves:
        title = "With half of the run made: worlds left out of the fit"
        sections.append(Section("left-out-half", title, judged(halves, REPEATED)))
    return sections
