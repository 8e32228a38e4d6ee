"""The cost of a run: time by phase, tokens, teacher calls, memory, money.

Money is shown only where the user gave a price (output.price_per_hour), with its basis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from opd.reports.charts import time_charts
from opd.reports.document import Cell, Charts, Number, Part, Section, Table
from opd.reports.formatting import minus, percent, plain, seconds
from opd.reports.read import RunData

PEAKS = {
    "memory/peak_rss_mib": "peak memory of the process",
    "memory/peak_device_mib": "peak memory of a GPU",
}
NOT_PHASES = ("time/step_s", "time/tokens_per_s")
BASIS = (
    "Machine time is the time of all steps from start to end, evaluations between steps included; "
    "loading the models, the last evaluation and saving the result are not."
)


def cost_sections(run: RunData) -> list[Section]:
    """Charts, totals and time by phase; nothing before the first step."""
    time = run.total("time/step_s")
    if not time:
        return []
    parts: list[Part] = [Charts(time_charts(run)), totals_table(run, time), _by_phase(run, time)]
    return [Section("cost", "Time, memory and cost", parts)]


def totals_table(run: RunData, time: float) -> Table:
    """Seconds, tokens, calls, memory and money.

    Args:
        run: the run.
        time: of all steps, in seconds.
    """
    tokens = float(run.series("train/tokens").values.sum())
    rows: list[Sequence[Cell]] = [
        ["machine time", Number(time, seconds(time), "steps only, see below")],
        ["completion tokens trained on", plain(tokens)],
        ["tokens per second, everything included", plain(tokens / time)],
        *_coldstart(run),
        *_teacher(run),
        *_evaluations(run),
    ]
    for name, label in PEAKS.items():
        memory = run.series(name).values
        if len(memory):
            peak = float(memory.max())
            rows.append([label, Number(peak, f"{peak:,.0f} MiB")])
    rows += _money(run, time)
    return Table("Totals", ("", ""), rows, BASIS)


def _coldstart(run: RunData) -> list[Sequence[Cell]]:
    time = run.total("time/step_s", cold_start=True)
    return [["of the machine time, the cold start", Number(time, seconds(time))]] if time else []


def _teacher(run: RunData) -> list[Sequence[Cell]]:
    if run.config.get("teacher") is None and not run.config.get("teachers"):
        return []
    rows: list[Sequence[Cell]] = []
    per_step = run.setting("train", "prompts_per_step"), run.setting("rollout", "n")
    if all(isinstance(count, int) for count in per_step):
        scored = len(run.series("train/tokens")) * math.prod(per_step)
        rows.append(["completions scored by the teacher", plain(float(scored))])
    labels = {
        "teacher/requests": "requests to the teacher server",
        "teacher/retries": "of them retries",
    }
    rows += [
        [label, plain(run.total(name))] for name, label in labels.items() if name in run.names()
    ]
    hits = run.series("teacher/cache_hits").values
    if len(hits):
        rows.append(["completions whose scores were cached", percent(float(hits.mean()))])
    return rows


def _evaluations(run: RunData) -> list[Sequence[Cell]]:
    results = [e for task in run.evals for e in (*task.student, task.teacher) if e is not None]
    if not results:
        return []
    tokens = sum(sample.length for result in results for sample in result.graded)
    note = f"{len(results):,} evaluations, the teacher's included"
    return [["completion tokens of evaluations", Number(tokens, f"{tokens:,}", note)]]


def _money(run: RunData, time: float) -> list[Sequence[Cell]]:
    price = run.setting("output", "price_per_hour")
    if not isinstance(price, int | float) or isinstance(price, bool):
        return []
    cost = price * time / 3600
    text = f"{cost:,.2f} USD" if cost >= 1 else minus(f"{cost:.2g} USD")
    basis = f"{price:g} USD per hour (output.price_per_hour) for the machine time above"
    return [["money", Number(cost, text, basis)]]


def _by_phase(run: RunData, time: float) -> Table:
    rows: list[Sequence[Cell]] = []
    rest = time
    for name in sorted(n for n in run.names() if n.startswith("time/") and n.endswith("_s")):
        if name in NOT_PHASES:
            continue
        value = run.total(name)
        rest -= value
        phase = name.removeprefix("time/").removesuffix("_s")
        rows.append([phase, Number(value, seconds(value)), percent(value / time)])
    rest = max(0.0, rest)
    rows.append(["everything else", Number(rest, seconds(rest)), percent(rest / time)])
    rows.append(["total", Number(time, seconds(time)), ""])
    return Table("Time by phase", ("phase", "time", "fraction"), rows)
