"""What the live page shows of a run, as JSON: whole once, then only what is new."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np

from opd.reports.chart_specs import (
    COLDSTART_CHARTS,
    DIAGNOSTIC_CHARTS,
    HEALTHY_RANGES,
    HORIZON_CHARTS,
    ROLLOUT_CHARTS,
    ChartSpec,
)
from opd.reports.chat_turns import readable_prompt
from opd.reports.live import LiveRun
from opd.reports.sanitize import visible
from opd.run import rollouts
from opd.run.jsonl import flatten

CLOCK_CHARTS = (
    ChartSpec("Seconds per step", (("time/step_s", "whole step"),), "", marked=False),
    ChartSpec("Throughput", (("time/tokens_per_s", "completion tokens per second"),), ""),
)
CHARTS = (
    DIAGNOSTIC_CHARTS[8],  # the loss
    *DIAGNOSTIC_CHARTS[:8],
    *ROLLOUT_CHARTS,
    *COLDSTART_CHARTS,
    *HORIZON_CHARTS,
    *CLOCK_CHARTS,
)
NAMES = frozenset(name for spec in CHARTS for name, _ in spec.lines)
UNITS = {
    "train/loss": "nats per token",
    "diag/overlap_ratio": "fraction",
    "diag/overlap_mass_student": "probability",
    "diag/support_mass": "probability",
    "rollout/length": "tokens",
    "time/step_s": "seconds",
    "time/tokens_per_s": "tokens/s",
    "horizon/limit": "tokens",
    "train/grad_norm": "norm",
}
RECENT = 10  # steps whose median time predicts the rest
MAX_ROLLOUTS = 8
MAX_CHARACTERS = 4000  # of a completion
MAX_ALARMS = 50


def run_summary(run: LiveRun, name: str) -> dict[str, Any]:
    """One row of the list of runs."""
    label = next(iter(run.evals), None)
    results = run.evals.get(label, []) if label else []
    teacher = run.teacher.get(label) if label else None
    return {
        "id": name,
        "name": visible(name),
        "state": run.state,
        "done": run.done,
        "planned": run.planned,
        "set": visible(label or ""),
        "before": results[0].value if results else None,
        "latest": results[-1].value if len(results) > 1 else None,
        "teacher": None if teacher is None else teacher.value,
        "alarms": len(run.alarms),
    }


def run_detail(run: LiveRun, name: str, have: int) -> dict[str, Any]:
    """Everything that is shown of a run.

    Args:
        run: the run.
        name: of the run in the list.
        have: step up to which the page has the series; those of this step are sent again.
    """
    step_times = run.values("time/step_s")[1][-RECENT:]
    left = float(np.median(step_times)) * (run.planned - run.done) if step_times else None
    return run_summary(run, name) | {
        "version": run.version,
        "epoch": run.epoch,
        "from": have,
        "phase": visible(run.phase),
        "left": left if run.is_running else None,
        "charts": [*_accuracy_charts(run), *_charts(run, have)],
        "marks": sorted({alarm.step for alarm in run.alarms}),
        "alarm_rows": [
            [alarm.step, *map(visible, (alarm.name, alarm.message, alarm.evidence, alarm.remedy))]
            for alarm in run.alarms[-MAX_ALARMS:]
        ],
    }


def settings(run: LiveRun) -> list[list[str]]:
    """The configuration of a run as rows of key and value."""
    return [[visible(k), visible(str(v))] for k, v in sorted(flatten(run.config).items())]


def _charts(run: LiveRun, have: int) -> list[dict[str, Any]]:
    charts = []
    for spec in CHARTS:
        lines = []
        for name, label in spec.lines:
            steps, values = run.values(name)
            if not steps:
                continue
            new = list(dropwhile(lambda at: at[0] < have, zip(steps, values, strict=True)))
            x, y = [at for at, _ in new], [_short(value) for _, value in new]
            lines.append({"name": name, "label": label, "x": x, "y": y})
        if lines:
            first = spec.lines[0][0]
            healthy = HEALTHY_RANGES.get(first)
            band = None if healthy is None else [healthy.low, healthy.high]
            charts.append(
                {
                    "key": first,
                    "title": spec.title,
                    "note": spec.note,
                    "percent": spec.percent,
                    "unit": "percent" if spec.percent else UNITS.get(first, "nats"),
                    "band": band,
                    "lines": lines,
                }
            )
    return charts


def _accuracy_charts(run: LiveRun) -> list[dict[str, Any]]:
    """Accuracy on each held-out set, always whole: there are few points, and one may be new."""
    charts = []
    for label, results in run.evals.items():
        teacher = run.teacher.get(label)
        line = {
            "name": "student",
            "label": "student, 95% interval",
            "x": [e.step for e in results],
            "y": [_short(e.value) for e in results],
            "low": [_short(e.low) for e in results],
            "high": [_short(e.high) for e in results],
        }
        charts.append(
            {
                "key": f"accuracy/{label}",
                "title": f"Accuracy on {visible(label)}",
                "note": "",
                "percent": True,
                "unit": "percent",
                "band": None,
                "whole": True,
                "level": None if teacher is None else _short(teacher.value),
                "lines": [line],
            }
        )
    return charts


def newest_rollouts(path: Path) -> dict[str, Any]:
    """Prompts and completions of the newest step that is on disk."""
    folder = path / "rollouts"
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    steps = sorted((int(m[1]) for n in names if (m := rollouts.FILE.fullmatch(n))), reverse=True)
    for step in steps[:3]:  # the newest may be under way, or of the step after this one
        file = folder / f"step-{step}.parquet"
        try:
            if file.is_symlink():
                continue
            shown = rollouts.read_completions(file, MAX_ROLLOUTS)
        except (OSError, ValueError):
            continue
        if any(r.text is None for r in shown):
            continue
        rows = [
            {
                "question": visible(readable_prompt(r.prompt).question),
                "answer": visible(r.answer),
                "text": visible((r.text or "")[:MAX_CHARACTERS]),
                "left_out": max(0, len(r.text or "") - MAX_CHARACTERS),
                "tokens": r.tokens,
            }
            for r in shown
        ]
        return {"step": step, "rollouts": rows}
    return {"step": None, "rollouts": []}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def find_runs(root: Path, depth: int = 3) -> Sequence[Path]:
    """Run folders at or below `root`, newest first; links are not followed.

    A folder that may not be read, or has just gone, has none.
    """
    try:
        if (root / "config.json").is_file() and (root / "env.json").is_file():
            return [root]
        if depth == 0 or not root.is_dir():
            return []
        below = [p for p in root.iterdir() if p.is_dir() and not p.is_symlink()]
    except OSError:
        return []
    runs = [run for p in below if not p.name.startswith(".") for run in find_runs(p, depth - 1)]
    return sorted(runs, key=_changed_at, reverse=True)


def _changed_at(run: Path) -> float:
    try:
        return (run / "env.json").stat().st_mtime
    except OSError:
        return 0.0
