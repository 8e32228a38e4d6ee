"""What a run cost: time by phase, tokens, calls of the teacher, memory, and money.

Money is told only where the user gave a price (output.price_per_hour), and always with its basis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from opd.reports.document import Cell, Charts, Number, Part, Section, Table
from opd.reports.figures import time_charts
from opd.reports.formatting import minus, percent, plain, seconds
from opd.reports.read import Evaluated, RunData

NOT_PHASES = ("time/step_s", "time/tokens_per_s")
BASIS = (
    "Machine time is that of every step from start to end, evaluations between steps included; "
    "loading the models, the last evaluation and saving the result come on top."
)


def cost_sections(run: RunData) -> list[Section]:
    """Time by phase and what it all came to; nothing before the first step."""
    total = run.spent("time/step_s")
    if not total:
        return []
    parts: list[Part] = [Charts(time_charts(run)), what_it_cost(run, total), _by_phase(run, total)]
    return [Section("cost", "Time, memory and cost", parts)]


def what_it_cost(run: RunData, total: float) -> Table:
    """Seconds, tokens, calls, memory and money as one table.

    Args:
        run: the run.
        total: wall time of all steps, in seconds.
    """
    trained = float(run.series("train/tokens").values.sum())
    rows: list[Sequence[Cell]] = [
        ["machine time", Number(total, seconds(total), "steps alone, see below")],
        ["completion tokens trained on", plain(trained)],
        ["tokens a second, everything included", plain(trained / total)],
        *_coldstart(run),
        *_teacher(run),
        *_evaluations(run),
    ]
    memory = run.series("memory/peak_rss_mib").values
    if len(memory):
        most = float(memory.max())
        rows.append(["peak memory of the process", Number(most, f"{most:,.0f} MiB")])
    rows += _money(run, total)
    return Table("What it cost", ("", ""), rows, BASIS)


def _coldstart(run: RunData) -> list[Sequence[Cell]]:
    took = run.spent("time/step_s", cold_start=True)
    return [["of the machine time, the cold start", Number(took, seconds(took))]] if took else []


def _teacher(run: RunData) -> list[Sequence[Cell]]:
    if run.config.get("teacher") is None:
        return []
    rows: list[Sequence[Cell]] = []
    a_step = run.setting("train", "prompts_per_step"), run.setting("rollout", "n")
    if all(isinstance(count, int) for count in a_step):
        scored = len(run.series("train/tokens")) * math.prod(a_step)
        rows.append(["completions the teacher scored", plain(float(scored))])
    names = {
        "teacher/requests": "requests to the teacher server",
        "teacher/retries": "of them repeated",
    }
    for name, words in names.items():
        if name in run.names():
            rows.append([words, plain(run.spent(name))])
    hits = run.series("teacher/cache_hits").values
    if len(hits):
        rows.append(["completions whose scores were cached", percent(float(hits.mean()))])
    return rows


def _evaluations(run: RunData) -> list[Sequence[Cell]]:
    found = [e for task in run.evals for e in (*task.student, task.teacher) if e is not None]
    if not found:
        return []
    tokens = sum(_tokens(e) for e in found)
    note = f"{len(found):,} evaluations, the teacher's included"
    return [["completion tokens written for evaluations", Number(tokens, f"{tokens:,}", note)]]


def _tokens(found: Evaluated) -> int:
    return sum(graded.length for graded in found.graded)


def _money(run: RunData, total: float) -> list[Sequence[Cell]]:
    price = run.setting("output", "price_per_hour")
    if not isinstance(price, int | float) or isinstance(price, bool):
        return []
    spent = price * total / 3600
    shown = f"{spent:,.2f} USD" if spent >= 1 else minus(f"{spent:.2g} USD")
    basis = f"{price:g} USD an hour (output.price_per_hour) for the machine time above"
    return [["money", Number(spent, shown, basis)]]


def _by_phase(run: RunData, total: float) -> Table:
    rows: list[Sequence[Cell]] = []
    spent = 0.0
    for name in sorted(n for n in run.names() if n.startswith("time/") and n.endswith("_s")):
        if name in NOT_PHASES:
            continue
        value = run.spent(name)
        spent += value
        phase = name.removeprefix("time/").removesuffix("_s")
        rows.append([phase, Number(value, seconds(value)), percent(value / total)])
    rest = max(0.0, total - spent)
    rows.append(["everything else", Number(rest, seconds(rest)), percent(rest / total)])
    rows.append(["together", Number(total, seconds(total)), ""])
    return Table("Time by phase", ("phase", "time", "share"), rows)
