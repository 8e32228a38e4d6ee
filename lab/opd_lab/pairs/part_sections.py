"""Sections of docs/check.md on checks that make a quarter or half of a run first."""

from __future__ import annotations

from collections.abc import Sequence

from opd.recipes.check.verdict import GO, NO_GO
from opd.reports.document import Section
from opd_lab.pairs.judged_table import judged
from opd_lab.pairs.judging import Case, summarise
from opd_lab.pairs.part_outcomes import steps_made

QUARTER, HALF = 0.25, 0.5
MEASURED = (
    "Runs of the block `half`: models, prompts and samples of their own, all made after the "
    "forecast had been committed. A check of one made the pilot, then went on with the run's own "
    "steps up to half of them (at least a quarter, where the step was measured so), and sampled "
    "answers to its 128 prompts again: what `opd check` does by itself where its time allows it. "
    "It looked at every length, settled or not."
)
REPEATED = (
    "Every world is evaluated with a model fitted on the other worlds. The part is that of the "
    "same run made a second time (`--block repeat`), with other prompts and samples; a check has "
    "them in common with the run, so these errors are rather too large."
)


def in_short(cases: Sequence[Case]) -> str:
    """How right the shipped forecast was after a part of the run; empty without such runs."""
    if not cases:
        return ""
    j = summarise(cases, "")
    return (
        f"Where the check made up to half of the run first ({j.cases} runs, {j.trainings} "
        f"trainings, made after the forecast), {j.decided:.0%} were called go or no-go: wrong "
        f"{j.wrong.get(GO, 0)} of {j.verdicts.get(GO, 0)} gos and {j.wrong.get(NO_GO, 0)} of "
        f"{j.verdicts.get(NO_GO, 0)} no-gos; 90% intervals held {j.coverage[0.9]:.0%}; mean error "
        f"{100 * j.error:.1f} points."
    )


def part_sections(measured: Sequence[Case], left_out: Sequence[Case]) -> list[Section]:
    """Of the shipped forecast on fresh runs, and of worlds left out; those that have any cases.

    Args:
        measured: fresh runs with a part made by the check, judged by the shipped forecast.
        left_out: runs of the study with the part of their repeat, each judged without its world.
    """
    sections = []
    if measured:
        title = "With up to half of the run made: the shipped forecast on runs made after it"
        sections.append(Section("half", title, judged(measured, MEASURED)))
    for fraction, name in ((HALF, "half"), (QUARTER, "a quarter")):
        cases = [c for c in left_out if abs(steps_made(c.outcome) - fraction) < 0.01]
        if cases:
            title = f"With {name} of the run made: worlds left out of the fit"
            sections.append(Section(f"left-out-{fraction:g}", title, judged(cases, REPEATED)))
    return sections
