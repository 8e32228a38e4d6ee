"""`opd watch RUN`: a live view of a run in the terminal, from its logs only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opd.errors import UserError
from opd.reports.chart_specs import HEALTHY_RANGES
from opd.reports.formatting import interval as interval_text
from opd.reports.formatting import percent, plain, seconds
from opd.reports.live import Evaluated, LiveRun
from opd.reports.read import read_run
from opd.reports.sanitize import for_terminal
from opd.run.jsonl import json_safe

BARS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
MAX_BARS, MIN_BARS = 32, 6  # of a sparkline
LABEL, NUMBER = 16, 8  # columns of a row beside its sparkline
RECENT = 10  # steps whose median time is shown
MAX_ALARMS = 5
METRICS = (
    ("coldstart/loss", "cold start loss"),
    ("coldstart/overlap_mass_student", "cold start mass"),
    ("train/loss", "loss"),
    ("diag/reverse_kl", "reverse KL"),
    ("diag/overlap_ratio", "overlap ratio"),
    ("diag/overlap_mass_student", "overlap mass"),
    ("diag/overlap_advantage", "advantage"),
    ("diag/entropy_gap_abs", "entropy gap"),
    ("diag/student_entropy", "entropy, student"),
    ("diag/teacher_entropy", "entropy, teacher"),
    ("rollout/length", "length"),
    ("rollout/truncated", "truncated"),
    ("rollout/reward", "training acc."),
    ("train/grad_norm", "gradient norm"),
)
CLOCKS = ("time/tokens_per_s", "time/step_s", "time/score_s")


def watch(path: Path, *, interval: float = 2.0, console: Console | None = None) -> None:
    """Show a run until it ends; once if the output is piped or the run is over.

    In a terminal, a folder that is not there yet is waited for.

    Args:
        path: the run folder.
        interval: seconds between two views.
        console: to print on; None: the terminal.

    Raises:
        UserError: no run folder.
    """
    console = console or Console(highlight=False)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file. Give the run folder, such as {path.parent}.")
    if not console.is_terminal or (path / "config.json").exists():
        read_run(path)  # refuses what is no run folder
    run = LiveRun(path, frozenset(name for name, _ in METRICS) | frozenset(CLOCKS))
    run.update()
    if not console.is_terminal or run.state in ("finished", "stopped"):
        console.print(view(run, console.width))
        return
    with Live(view(run, console.width), console=console, refresh_per_second=2) as live:
        while run.state in ("waiting", "running"):
            time.sleep(interval)
            run.update()
            live.update(view(run, console.width))


def watch_as_json(path: Path, *, interval: float = 2.0, say: Callable[[str], None]) -> None:
    """Print a run's state as one JSON object a line, whenever it changes, until the run ends.

    Args:
        path: the run folder; one that is not there yet is waited for.
        interval: seconds between two looks.
        say: prints a line.

    Raises:
        UserError: no run folder.
    """
    if path.exists():
        read_run(path)  # refuses what is no run folder
    run = LiveRun(path, frozenset(name for name, _ in METRICS) | frozenset(CLOCKS))
    last = None
    while True:
        run.update()
        line = json.dumps(json_safe(state_of(run)), allow_nan=False)
        if line != last:
            say(line)
        last = line
        if run.state not in ("waiting", "running"):
            return
        time.sleep(interval)


def state_of(run: LiveRun) -> dict[str, Any]:
    """Progress, newest metrics and accuracies, and alarms so far, as plain values."""
    newest = {name: run.values(name)[1] for name in (*dict(METRICS), *CLOCKS)}
    return {
        "run": str(run.path),
        "state": run.state,
        "step": run.done,
        "steps": run.planned,
        "phase": run.phase,
        "metrics": {name: values[-1] for name, values in newest.items() if values},
        "accuracy": {label: asdict(results[-1]) for label, results in run.evals.items()},
        "teacher": {label: asdict(result) for label, result in run.teacher.items()},
        "alarms": [{"step": alarm.step, "name": alarm.name} for alarm in run.alarms],
    }


def view(run: LiveRun, width: int) -> RenderableType:
    """Progress, metrics, accuracies and the latest alarms, in `width` columns."""
    if run.state == "waiting":
        return Text(f"Waiting for a run in {for_terminal(str(run.path))} ...")
    return Group(_progress(run), _metrics(run, width), *_evals(run), *_alarms(run))


def _progress(run: LiveRun) -> Text:
    parts = [f"{for_terminal(run.name)}  step {run.done}/{run.planned}"]
    if (speed := _recent(run, "time/tokens_per_s")) is not None:
        parts.append(f"{speed:,.0f} tok/s")
    if run.is_running and (step_time := _recent(run, "time/step_s")) is not None:
        parts.append(f"about {seconds((run.planned - run.done) * step_time)} left")
    if run.phase:
        parts.append(for_terminal(run.phase))
    if (score_time := _recent(run, "time/score_s")) is not None:
        parts.append(f"teacher {seconds(score_time)} per step")
    parts.append(run.state)
    return Text("   ".join(parts), style="bold")


def _recent(run: LiveRun, name: str) -> float | None:
    """Median of the newest values; None without any."""
    values = run.values(name)[1][-RECENT:]
    return float(np.median(values)) if values else None


def _metrics(run: LiveRun, width: int) -> Table:
    """A row per metric: newest value, first value, sparkline, and the range it is drawn in."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("", "now", "start", "trend", "low to high"):
        table.add_column(heading, no_wrap=True, header_style="dim", overflow="crop")
    bars = max(MIN_BARS, min(MAX_BARS, width - LABEL - 4 * NUMBER - 8))
    for name, label in METRICS:
        values = run.values(name)[1]
        if not values:
            continue
        now = values[-1]
        healthy = HEALTHY_RANGES.get(name)
        style = "yellow" if healthy is not None and now < healthy.low else ""
        line, low, high = sparkline(values, bars)
        scale = f"{plain(low).text} to {plain(high).text}"
        table.add_row(label, Text(plain(now).text, style=style), plain(values[0]).text, line, scale)
    return table


def sparkline(values: Sequence[float], bars: int) -> tuple[str, float, float]:
    """A series as one line of bars, newest last, and the values of its lowest and highest bar."""
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(bars, len(values)))
    means = np.array([part.mean() for part in parts])
    low, span = float(means.min()), float(np.ptp(means))
    index = np.zeros(len(means)) if span == 0 else (means - low) / span * (len(BARS) - 1)
    return "".join(BARS[round(float(i))] for i in index), low, low + span


def _evals(run: LiveRun) -> Sequence[Text]:
    lines = []
    for label, results in run.evals.items():
        parts = _accuracies(results)
        if label in run.teacher:
            parts.append(f"teacher {percent(run.teacher[label].value).text}")
        lines.append(Text(f"accuracy on {for_terminal(label)}: {', '.join(parts)}"))
    return lines


def _accuracies(results: Sequence[Evaluated]) -> list[str]:
    """The student's first and two latest accuracies, the latest with its interval."""
    shown = [results[0], *results[-2:]] if len(results) > 3 else results
    parts = [f"{percent(e.value).text} at step {e.step}" for e in shown]
    parts[-1] += f" ({interval_text(results[-1].low, results[-1].high)})"
    return parts


def _alarms(run: LiveRun) -> Sequence[Text]:
    lines = []
    for alarm in run.alarms[-MAX_ALARMS:]:
        parts = [f"alarm at step {alarm.step}: {alarm.name}", alarm.message, alarm.evidence]
        parts += [f"Remedy: {alarm.remedy}" if alarm.remedy else "", alarm.intervention]
        lines.append(Text(for_terminal("  ".join(filter(None, parts))), style="red"))
    return lines
