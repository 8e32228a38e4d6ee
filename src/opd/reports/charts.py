"""Charts of a run: the series of each chart with its healthy range, marks and legend."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from opd.reports.alarm_log import first_steps
from opd.reports.chart_specs import HEALTHY_RANGES, HEATMAPS, ChartSpec
from opd.reports.document import Chart, Legend
from opd.reports.plots import LINEAR, PERCENT, Line, Marks, curves, heatmap
from opd.reports.read import RunData

Floats = NDArray[np.float64]

_POSITION_BIN = re.compile(r"(.+)@pos(\d+)-(\d+)")


def marks(run: RunData) -> Marks:
    """Steps at which an alarm or a later phase began."""
    return Marks(first_steps(run.alarms), [step for step, _ in run.phases[1:]])


def mark_legend(run: RunData) -> list[Legend]:
    """Legend of the vertical lines, phases by name and step."""
    legend = [Legend("alarm", "alarm begins")] if run.alarms else []
    phases = [f"{name} from step {step:.0f}" for step, name in run.phases[1:]]
    return legend + ([Legend("phase", ", ".join(phases))] if phases else [])


def line_charts(run: RunData, specs: Sequence[ChartSpec]) -> list[Chart]:
    """Charts of a run, without those of which nothing was logged."""
    charts = [_line_chart(run, spec) for spec in specs]
    return [chart for chart in charts if chart is not None]


def _line_chart(run: RunData, spec: ChartSpec) -> Chart | None:
    lines, legend, data, band = [], [], {}, None
    for style, (name, label) in enumerate(spec.lines, 1):
        series = run.series(name)
        if not len(series):
            continue
        lines.append(Line(series.steps, series.values, style))
        legend.append(Legend(f"line-{style}", label))
        data[name] = {"steps": series.steps.tolist(), "values": series.values.tolist()}
        band = HEALTHY_RANGES.get(name, band)
    if not lines:
        return None
    if band is not None:
        legend.append(Legend("healthy", f"{band.low:g} to {band.high:g}: {band.source}"))
        data["healthy"] = {"low": band.low, "high": band.high, "source": band.source}
    legend += mark_legend(run) if spec.marked else []
    svg = curves(
        spec.title,
        lines,
        band=None if band is None else (band.low, band.high),
        marks=marks(run) if spec.marked else None,
        scale=PERCENT if spec.percent else LINEAR,
    )
    return Chart(spec.title, svg, data, legend, spec.note, spec.lines[0][0])


def heatmaps(run: RunData) -> list[Chart]:
    """Position by step, for the metrics that were logged by position."""
    charts = []
    for name, title in HEATMAPS:
        binned = by_position(run, name)
        if binned is None:
            continue
        matrix, steps, edges = binned
        rows = [[None if np.isnan(v) else float(v) for v in row] for row in matrix]
        data = {"steps": steps.tolist(), "edges": edges, "values": rows}
        svg = heatmap(name, matrix, steps, edges)
        charts.append(Chart(title, svg, data, name=f"{name}@pos"))
    return charts


def by_position(run: RunData, name: str) -> tuple[Floats, Floats, list[int]] | None:
    """Values of a metric by position bin and step.

    Returns:
        Values (bins, steps), steps (steps,) and bin edges (bins + 1); None without any.
    """
    matches = [m for n in run.names() if (m := _POSITION_BIN.fullmatch(n)) and m[1] == name]
    bins = sorted(((int(m[2]), int(m[3])), m[0]) for m in matches)
    if not bins:
        return None
    rows = [run.series(key) for _, key in bins]
    steps = np.unique(np.concatenate([row.steps for row in rows]))
    if not len(steps):  # never a number
        return None
    matrix = np.full((len(rows), len(steps)), np.nan)
    for i, row in enumerate(rows):
        matrix[i, np.searchsorted(steps, row.steps)] = row.values
    edges = [first for (first, _), _ in bins] + [bins[-1][0][1] + 1]
    return matrix, steps, edges


def time_charts(run: RunData) -> list[Chart]:
    """Seconds per step by phase, throughput, memory."""
    phases = tuple(
        (f"time/{phase}_s", phase)
        for phase in ("rollout", "score", "update")
        if f"time/{phase}_s" in run.names()
    )
    memory = (
        ("memory/peak_rss_mib", "peak of the process, MiB"),
        ("memory/peak_device_mib", "peak of a GPU, MiB"),
    )
    specs = [
        ChartSpec("Seconds per step", phases, "Where the time of a step goes."),
        ChartSpec("Throughput", (("time/tokens_per_s", "completion tokens per second"),), ""),
        ChartSpec("Memory", memory, ""),
    ]
    return line_charts(run, [spec for spec in specs if spec.lines])
