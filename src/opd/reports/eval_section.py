"""Held-out accuracy of a run: curves, tables, and answers that changed."""

from __future__ import annotations

import numpy as np

from opd.reports.answers import held_out_answers
from opd.reports.charts import mark_legend, marks
from opd.reports.document import (
    Cell,
    Chart,
    Charts,
    Legend,
    Note,
    Part,
    Section,
    Table,
)
from opd.reports.eval_sets import EvalResult, EvalSet
from opd.reports.formatting import estimate, length, nats, percent
from opd.reports.outcome import Outcome, outcome, samples_text
from opd.reports.plots import PERCENT, Line, curves
from opd.reports.read import RunData


def eval_section(run: RunData) -> Section:
    """Accuracy before, during and after training on every held-out set."""
    outcomes = [o for task in run.evals if (o := outcome(task)) is not None]
    parts: list[Part] = []
    if outcomes:
        parts.append(Charts([_chart(run, o.task) for o in outcomes]))
    parts += [_table(o, is_main=index == 0) for index, o in enumerate(outcomes)]
    parts += [b for o in outcomes if (b := held_out_answers(o.task)) is not None]
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
    columns: dict[str, EvalResult] = {result.first: first}
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
    if all(e.entropy is not None for e in evals):
        entropies = [nats(e.entropy) for e in evals if e.entropy is not None]
        rows.append(["entropy of the tokens, nats", *entropies])
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
