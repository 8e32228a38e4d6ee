"""`opd watch RUN`: a live view of a run in the terminal, from its logs only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opd.reports.chart_specs import HEALTHY_RANGES
from opd.reports.eval_sets import EvalSet
from opd.reports.formatting import interval as interval_text
from opd.reports.formatting import percent, plain, seconds
from opd.reports.read import RunData, Series, read_run
from opd.reports.sanitize import for_terminal

BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
WIDTH = 32  # bars of a sparkline
RECENT = 10  # steps whose median time is shown
MAX_ALARMS = 5
METRICS = (
    ("coldstart/loss", "cold start, loss"),
    ("coldstart/overlap_mass_student", "cold start, overlap mass"),
    ("diag/reverse_kl", "reverse KL"),
    ("diag/overlap_ratio", "overlap ratio"),
    ("diag/overlap_mass_student", "overlap mass, student"),
    ("diag/overlap_advantage", "advantage (Eq. 7)"),
    ("diag/entropy_gap_abs", "entropy gap"),
    ("diag/student_entropy", "entropy, student"),
    ("diag/teacher_entropy", "entropy, teacher"),
    ("rollout/length", "length"),
    ("rollout/truncated", "truncated"),
    ("rollout/reward", "training accuracy"),
    ("train/grad_norm", "gradient norm"),
)


def watch(path: Path, *, interval: float = 2.0, console: Console | None = None) -> None:
    """Show a run until it ends; once if the output is piped or the run is over.

    Args:
        path: the run folder.
        interval: seconds between two views.
        console: to print on; None: the terminal.

    Raises:
        UserError: no run folder.
    """
    console = console or Console(highlight=False)
    run = read_run(path)
    if not console.is_terminal or not run.is_running:
        console.print(view(run))
        return
    with Live(view(run), console=console, refresh_per_second=2) as live:
        while run.is_running:
            time.sleep(interval)
            run = read_run(path)
            live.update(view(run))


def view(run: RunData) -> Group:
    """Progress, metrics, accuracies and the latest alarms."""
    return Group(_progress(run), _metrics(run), *_evals(run), *_alarms(run))


def _progress(run: RunData) -> Text:
    parts = [f"{for_terminal(run.name)}  step {run.done}/{run.planned}"]
    if (speed := _recent(run, "time/tokens_per_s")) is not None:
        parts.append(f"{speed:,.0f} tok/s")
    if run.is_running and (step_time := _recent(run, "time/step_s")) is not None:
        parts.append(f"about {seconds((run.planned - run.done) * step_time)} left")
    if len(run.phases) > 1:
        parts.append(for_terminal(run.phases[-1][1]))
    if (score_time := _recent(run, "time/score_s")) is not None:
        parts.append(f"teacher {seconds(score_time)} per step")
    parts.append(run.state)
    return Text("   ".join(parts), style="bold")


def _recent(run: RunData, name: str) -> float | None:
    """Median of the newest values; None without any."""
    values = run.series(name).values[-RECENT:]
    return float(np.median(values)) if len(values) else None


def _metrics(run: RunData) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, label in METRICS:
        series = run.series(name)
        if not len(series):
            continue
        now = float(series.values[-1])
        healthy = HEALTHY_RANGES.get(name)
        style = "yellow" if healthy is not None and now < healthy.low else ""
        table.add_row(label, Text(plain(now).text, style=style), sparkline(series))
    return table


def sparkline(series: Series) -> str:
    """A series as one line of bars, from its lowest to its highest value."""
    parts = np.array_split(series.values, min(WIDTH, len(series)))
    means = np.array([part.mean() for part in parts])
    low, span = means.min(), np.ptp(means)
    index = np.zeros(len(means)) if span == 0 else (means - low) / span * (len(BARS) - 1)
    return "".join(BARS[round(float(i))] for i in index)


def _evals(run: RunData) -> Sequence[Text]:
    lines = []
    for task in run.evals:
        parts = _accuracies(task)
        if task.teacher is not None:
            parts.append(f"teacher {percent(task.teacher.accuracy.value).text}")
        lines.append(Text(f"accuracy on {for_terminal(task.label)}: {', '.join(parts)}"))
    return lines


def _accuracies(task: EvalSet) -> list[str]:
    """The student's first and two latest accuracies, the latest with its interval."""
    results = task.student
    if len(results) > 3:
        results = [results[0], *results[-2:]]
    parts = [f"{percent(e.accuracy.value).text} at step {e.step}" for e in results]
    if results:
        last = results[-1].accuracy
        parts[-1] += f" ({interval_text(last.low, last.high)})"
    return parts


def _alarms(run: RunData) -> Sequence[Text]:
    lines = []
    for alarm in run.alarms[-MAX_ALARMS:]:
        parts = [f"alarm at step {alarm.step}: {alarm.name}", alarm.message, alarm.evidence]
        parts += [f"Remedy: {alarm.remedy}" if alarm.remedy else "", alarm.intervention]
        lines.append(Text(for_terminal("  ".join(filter(None, parts))), style="red"))
    return lines
