"""Sections of docs/check.md on checks that make half or all of a run first."""

from __future__ import annotations

from collections.abc import Sequence

from opd.recipes.check.verdict import GO, NO_GO
from opd.reports.document import Note, Part, Section, Table
from opd_lab.pairs.design import HALF_SEEN
from opd_lab.pairs.judged_table import judged
from opd_lab.pairs.judging import Case, summarise
from opd_lab.pairs.part_outcomes import steps_made

HALF, WHOLE = "half", "the whole"
FRACTIONS = {WHOLE: 1.0, HALF: 0.5}  # of the steps, which a check makes
WRONG_COLUMNS = (
    *("run", "before", "teacher", "change by the part", "predicted change", "change", "verdict"),
)
MEASURED = (
    "Runs of the block `half`: models, prompts and samples of their own, made after the forecast "
    "had been committed. A check of one made the pilot, then went on with the run's own "
    "steps up to {part} of them, and sampled answers to its 128 prompts again. `opd check` does so "
    "where its time allows it, unless the verdict rests on the teacher alone (which is not ahead, "
    "say) or no change of accuracy can be predicted; up to the end, unless half of the run has "
    "settled the verdict and the interval is narrow (5 points to each side). Steps, prompts and "
    "random numbers of the copy are those of the run itself; held-out prompts are not."
)
SEEN = (
    f"The first {HALF_SEEN} trainings of the block, made up to half alone. In the first 22 a "
    "defect was found and corrected: the change by the part had been extrapolated otherwise than "
    "in the fit. Then the weight of a part was fitted again, on whole runs as well. No coefficient "
    "was fitted on these trainings, but they do not judge the last form."
)
REPEATED = (
    "Every world is evaluated with a model fitted on the other worlds. The part is that of the "
    "same run made a second time (`--block repeat`), with other prompts and samples; a check has "
    "them in common with the run, so these errors are rather too large."
)
CLEAR = 0.05  # of accuracy


def in_short(wholes: Sequence[Case], halves: Sequence[Case]) -> str:
    """How right the shipped forecast was after a part of the run; empty without such runs."""
    texts = []
    for part, cases in ((WHOLE, wholes), (HALF, halves)):
        if later := [case for case in cases if not was_seen(case)]:
            j = summarise(later, "")
            texts.append(
                f"Where the check made {part} {'' if part == WHOLE else 'of the '}run first "
                f"({j.cases} runs, {j.trainings} trainings, made after the forecast), "
                f"{j.decided:.0%} were called go or no-go: wrong {j.wrong.get(GO, 0)} of "
                f"{j.verdicts.get(GO, 0)} gos and {j.wrong.get(NO_GO, 0)} of "
                f"{j.verdicts.get(NO_GO, 0)} no-gos; 90% intervals held {j.coverage[0.9]:.0%}; "
                f"mean error {100 * j.error:.1f} points."
            )
    return " ".join(texts)


def was_seen(case: Case) -> bool:
    """Whether a run of the block `half` was known when the forecast got its last form."""
    return bool(case.outcome.facts["index"] < HALF_SEEN)


def wrong_verdicts(cases: Sequence[Case]) -> list[Part]:
    """The wrong ones, a line each, and how many of the students rose; that there is none, if so."""
    wrong = [case for case in cases if not case.right]
    if not wrong:
        return [Note("No go or no-go was wrong.")]
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
        for case in wrong
    ]
    gos = [case for case in wrong if case.verdict == GO]
    risen = sum(case.outcome.change > CLEAR for case in gos)
    text = f"In {risen} of {len(gos)} wrong gos accuracy rose by more than 5 points."
    note = f"Wrong gos and no-gos. {text}" if gos else "Wrong no-gos."
    return [Note(note), Table("", WRONG_COLUMNS, rows)]


def part_sections(
    wholes: Sequence[Case], halves: Sequence[Case], left_out: Sequence[Case]
) -> list[Section]:
    """Of the shipped forecast on fresh runs, and of worlds left out; those that have any cases.

    Args:
        wholes: fresh runs that the check made whole, judged by the shipped forecast.
        halves: likewise, with half of each run made.
        left_out: runs of the study with parts of their repeats, each judged without its world.
    """
    sections = []
    for part, cases in ((WHOLE, wholes), (HALF, halves)):
        title = f"With {part} {'' if part == WHOLE else 'of the '}run made"
        key = part.split()[-1]
        later = [case for case in cases if not was_seen(case)]
        if later:
            note = MEASURED.format(part="all" if part == WHOLE else part)
            parts = [*judged(later, note), *wrong_verdicts(later)]
            name = f"{title}: the shipped forecast on runs made after it"
            sections.append(Section(key, name, parts))
        if seen := [case for case in cases if was_seen(case)]:
            parts = [*judged(seen, SEEN), *wrong_verdicts(seen)]
            sections.append(Section(f"{key}-seen", f"{title}: on runs made before", parts))
        made = [c for c in left_out if abs(steps_made(c.outcome) - FRACTIONS[part]) < 0.01]
        if made:
            parts = [*judged(made, REPEATED), *wrong_verdicts(made)]
            name = f"{title}: worlds left out of the fit"
            sections.append(Section(f"left-out-{key}", name, parts))
    return sections
