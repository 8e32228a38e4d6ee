"""Sections of docs/check.md on real models."""

from __future__ import annotations

from collections.abc import Sequence

from opd.reports.document import Note, Part, Section, Table
from opd_lab.pairs.judged_table import ALL
from opd_lab.pairs.judging import Case, summarise
from opd_lab.pairs.page_parts import CASE_COLUMNS, case_row
from opd_lab.pairs.real import BLOCK, PART_RUNS
from opd_lab.pairs.records import count_trainings

CLEAR = 0.05  # change of accuracy whose sign should be right
REAL = (
    "Real models: SmolLM2-135M-Instruct, as it is or fine-tuned, on three tasks "
    "(`lab/opd_lab/pairs/real.py`; those of Qwen2.5-Coder-Instruct are not among them), 24 steps, "
    "four lengths each, 128 held-out prompts."
)
REAL_UNSEEN = (
    "The shipped forecast on runs that it was not fitted on, with models and tasks that are those "
    "of runs in the fit. Run 6 was measured before the commit that froze the forecast and not "
    "looked at, but for the accuracy after training; the others were measured after it."
)
REAL_LEFT_OUT = "Runs in the fit, each with a forecast fitted without its task."
MADE = (
    "Of these runs the check made {part} first, as `opd check` does where its time allows it: "
    "SmolLM2-135M-Instruct in float32, 64 prompts of the probe, 24 steps, four lengths each. "
    "{planned} runs were fixed before any of them was made, and those with the lowest numbers "
    "were; `initials` (the first letters of four words) and `largest` (of four numbers) are tasks "
    "of no run in the fit."
)


def real_sections(
    unseen: Sequence[Case],
    left_out: Sequence[Case],
    wholes: Sequence[Case],
    halves: Sequence[Case],
) -> list[Section]:
    """Every real run, with its forecast; how often the sign was right and the interval held.

    Args:
        unseen: judged by the shipped forecast, which was not fitted on them.
        left_out: those in the fit are among these, each judged without its world.
        wholes: runs that the check made whole before.
        halves: likewise, with half of each.
    """
    parts: list[Part] = [Note(REAL)]
    fitted = [c for c in left_out if c.outcome.facts["block"] == BLOCK]
    for note, cases in ((REAL_UNSEEN, unseen), (REAL_LEFT_OUT, fitted)):
        if cases:
            rows = [[*case_row(case), "" if case.right else "wrong"] for case in cases]
            text = f"{note} {_summary(cases)}"
            parts += [Note(text), Table("", (*CASE_COLUMNS, ""), rows)]
    sections = [Section("real", "Real models", parts)]
    for part, cases in (("all", wholes), ("half", halves)):
        if cases:
            made = MADE.format(part=f"{part} of the steps", planned=len(PART_RUNS))
            text = f"{made} {_summary(cases)}"
            table = Table("", (*CASE_COLUMNS, "change by the part", ""), _part_rows(cases))
            title = f"Real models with {'the whole' if part == 'all' else 'half of the'} run made"
            sections.append(Section(f"real-{part}", title, [Note(text), table]))
    return sections


def _part_rows(cases: Sequence[Case]) -> list[list[str]]:
    return [
        [
            *case_row(case),
            f"{case.outcome.features['part_resampled'].value:+z.2f}",
            "" if case.right else "wrong",
        ]
        for case in cases
    ]


def _summary(cases: Sequence[Case]) -> str:
    clear = [case for case in cases if abs(case.outcome.change) > CLEAR]
    signs = sum(case.predicted * case.outcome.change > 0 for case in clear)
    inside = sum(case.inside(0.9) for case in cases)
    trainings = count_trainings(case.outcome for case in cases)
    return (
        f"{len(cases)} runs of {trainings} trainings. Sign right on {signs} of {len(clear)} that "
        f"changed by more than {100 * CLEAR:.0f} points; 90% intervals hold {inside} of "
        f"{len(cases)}; error {100 * summarise(cases, ALL).error:.1f} points."
    )
