"""Held-out accuracy of a run: curves, tables, and answers that changed."""

from __future__ import annotations

import numpy as np

from opd.reports.charts import mark_legend, marks
from opd.reports.document import (
    Cell,
    Chart,
    Charts,
    Example,
    Examples,
    Legend,
    Note,
    Part,
    Section,
    Table,
)
from opd.reports.eval_sets import EvalResult, EvalSet
from opd.reports.formatting import estimate, length, percent
from opd.reports.outcome import Outcome, outcome, samples_text
from opd.reports.plots import PERCENT, Line, curves
from opd.reports.read import RunData

MAX_EXAMPLES = 3  # of each kind
MAX_CHARACTERS = 1200  # of a completion


def eval_section(run: RunData) -> Section:
    """Accuracy before, during and after training on every held-out set."""
    outcomes = [o for task in run.evals if (o := outcome(task)) is not None]
    parts: list[Part] = []
    if outcomes:
        parts.append(Charts([_chart(run, o.task) for o in outcomes]))
    parts += [_table(o, is_main=index == 0) for index, o in enumerate(outcomes)]
    parts += [part for o in outcomes for part in _changed_answers(o.task)]
    if not parts:
        parts = [Note("No held-out set was evaluated; add one under `eval` in run.yaml.")]
    lead = "The verdict is about the first set; the others show side effects."
    title = "Accuracy before, during, after"
    return Section("accuracy", title, parts, lead if len(outcomes) > 1 else "")


def _chart(run: RunData, task: EvalSet) -> Chart:
    results = task.student
    coldstart = task.after_coldstart
    if coldstart is not None:  # its step twice: before, and after the cold start
        before = [e for e in results if e.step <= coldstart.step]
        results = [*before, coldstart, *results[len(before) :]]
    steps = np.array([e.step for e in results])
    value, low, high = (
        np.array([getattr(e.accuracy, part) for e in results]) for part in ("value", "low", "high")
    )
    teacher = None if task.teacher is None else task.teacher.accuracy.value
    svg = curves(
        f"accuracy-{task.label}",
        [Line(steps, value, low=low, high=high, points=True)],
        level=teacher,
        marks=marks(run),
        scale=PERCENT,
    )
    data = {"steps": steps.tolist(), "accuracy": value.tolist(), "teacher": teacher}
    data |= {"low": low.tolist(), "high": high.tolist()}
    legend = [
        Legend("line-1", "student, 95% interval"),
        *([] if teacher is None else [Legend("level", "teacher")]),
        *mark_legend(run),
    ]
    return Chart(f"Accuracy on {task.label}", svg, data, legend, "over steps")


def _table(result: Outcome, *, is_main: bool) -> Table:
    task = result.task
    first, final = task.student[0], task.final
    columns: dict[str, EvalResult] = {"before": first}
    if task.after_coldstart is not None:
        columns["after the cold start"] = task.after_coldstart
    if final.step > first.step:
        columns[f"after {final.step} steps"] = final
    if task.teacher is not None:
        columns["teacher"] = task.teacher
    evals = list(columns.values())
    rows: list[list[Cell]] = [["accuracy", *(estimate(e.accuracy) for e in evals)]]
    for k in final.pass_at:
        rows.append([f"pass@{k}", *(estimate(e.pass_at[k]) for e in evals)])
    rows.append(["length, tokens", *(length(e.length) for e in evals)])
    rows.append(["truncated by the token limit", *(percent(e.truncated) for e in evals)])
    note = (
        f"{first.accuracy.n:,} prompts, {samples_text(task)} at temperature "
        f"{task.settings.get('temperature')}, top_p {task.settings.get('top_p')}; grader: "
        f"{task.grader}. 95% intervals, the prompt as the unit."
    )
    note += _recovery_note(result) if is_main else ""
    caption = f"{task.label} ({'the task' if is_main else 'also measured'})"
    return Table(caption, ["", *columns], rows, note)


def _recovery_note(result: Outcome) -> str:
    if result.recovery is None or result.lead is None:
        return ""
    if result.lead.difference.low <= 0:
        return " The teacher's lead is within the noise."
    recovery = estimate(result.recovery)
    return f" {recovery.text} of the gap to the teacher was recovered ({recovery.note})."


def _changed_answers(task: EvalSet) -> list[Part]:
    """Examples of samples that became correct, and of those that became incorrect."""
    first, final = task.student[0], task.final
    if first.step == final.step:
        return []
    before = {(g.prompt_index, g.sample): g for g in first.graded}
    prompts = {
        g.prompt_index: g.extra for e in (first, final) for g in e.graded if "prompt" in g.extra
    }
    parts: list[Part] = []
    for correct, label in ((True, "became correct"), (False, "became incorrect")):
        pairs = [
            (earlier, g)
            for g in final.graded
            if (earlier := before.get((g.prompt_index, g.sample))) is not None
            and g.correct is correct
            and earlier.correct is not correct
        ]
        items = [
            Example(
                prompt=str(prompts.get(b.prompt_index, {}).get("prompt", "")),
                answer=str(prompts.get(b.prompt_index, {}).get("answer", "")),
                before=_shortened(b.text),
                after=_shortened(a.text),
                title=f"prompt {b.prompt_index}, sample {b.sample}",
            )
            for b, a in pairs[:MAX_EXAMPLES]
        ]
        title = f"{len(pairs):,} of {len(final.graded):,} answers on {task.label} {label}"
        parts.append(Examples(title, items, "" if items else "None."))
    return parts


def _shortened(text: str) -> str:
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    left_out = len(text) - MAX_CHARACTERS
    return f"{text[:half]}\n[{left_out:,} characters left out]\n{text[-half:]}"
