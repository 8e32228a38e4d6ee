"""`opd watch RUN`: a live view of a run in the terminal, from its logs alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opd.reports.formatting import interval, percent, plain, seconds
from opd.reports.ranges import HEALTHY
from opd.reports.read import RunData, Series, read_run
from opd.reports.sanitize import for_terminal

BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
WIDTH = 32
SHOWN = (
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
    ("rollout/truncated", "cut by the limit"),
    ("rollout/reward", "right while training"),
    ("train/grad_norm", "gradient norm"),
)


def watch(path: Path, *, every: float = 2.0, console: Console | None = None) -> None:
    """Show a run until it ends; piped, or of a run that is over, show it once.

    Args:
        path: the run folder.
        every: seconds between looks.
        console: where to; None: the terminal.

    Raises:
        UserError: no run folder.
    """
    console = console or Console(highlight=False)
    run = read_run(path)
    if not console.is_terminal or not run.alive:
        console.print(view(run))
        return
    with Live(view(run), console=console, refresh_per_second=2) as live:
        while run.alive:
            time.sleep(every)
            run = read_run(path)
            live.update(view(run))


def view(run: RunData) -> Group:
    """Everything shown at one look."""
    return Group(_head(run), _table(run), *_evals(run), *_alarms(run))


def _head(run: RunData) -> Text:
    took = run.series("time/step_s").values
    speed = run.series("time/tokens_per_s").values
    words = [f"{for_terminal(run.name)}  step {run.done}/{run.planned}"]
    if len(speed):
        words.append(f"{np.median(speed[-10:]):,.0f} tok/s")
    if run.alive and len(took):
        left = (run.planned - run.done) * float(np.median(took[-10:]))
        words.append(f"about {seconds(left)} left")
    if len(run.phases) > 1:
        words.append(for_terminal(run.phases[-1][1]))
    score = run.series("time/score_s").values
    if len(score):
        words.append(f"teacher {seconds(float(np.median(score[-10:])))} a step")
    words.append(run.state)
    return Text("   ".join(words), style="bold")


def _table(run: RunData) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, words in SHOWN:
        series = run.series(name)
        if not len(series):
            continue
        now = float(series.values[-1])
        healthy = HEALTHY.get(name)
        style = "yellow" if healthy is not None and now < healthy.low else ""
        table.add_row(words, Text(plain(now).text, style=style), spark(series))
    return table


def spark(series: Series) -> str:
    """The course of a series in one line of bars, from its lowest to its highest value."""
    parts = np.array_split(series.values, min(WIDTH, len(series)))
    means = np.array([part.mean() for part in parts])
    low, span = means.min(), np.ptp(means)
    index = np.zeros(len(means)) if span == 0 else (means - low) / span * (len(BARS) - 1)
    return "".join(BARS[round(float(i))] for i in index)


def _evals(run: RunData) -> Sequence[Text]:
    lines = []
    for task in run.evals:
        label = for_terminal(task.label)
        shown = [
            f"{percent(e.accuracy.value).text} at step {e.step}"
            for e in (
                task.student if len(task.student) <= 3 else task.student[:1] + task.student[-2:]
            )
        ]
        if task.student:
            last = task.student[-1].accuracy
            shown[-1] += f" ({interval(last.low, last.high)})"
        if task.teacher is not None:
            shown.append(f"teacher {percent(task.teacher.accuracy.value).text}")
        lines.append(Text(f"accuracy on {label}: {', '.join(shown)}"))
    return lines


def _alarms(run: RunData) -> Sequence[Text]:
    lines = []
    for alarm in run.alarms[-5:]:
        words = [f"alarm at step {alarm.step}: {alarm.name}", alarm.message, alarm.evidence]
        words += [f"Helps: {alarm.remedy}" if alarm.remedy else "", alarm.acted]
        lines.append(Text(for_terminal("  ".join(filter(None, words))), style="red"))
    return lines
