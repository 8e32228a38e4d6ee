"""Charts of a run: which numbers, with which ranges, marks and legends."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from opd.reports.alarms import starts
from opd.reports.document import Chart, Legend
from opd.reports.plots import Line, Marks, curves, heat
from opd.reports.ranges import HEALTHY, HEAT, Picture
from opd.reports.read import RunData

_BIN = re.compile(r"(.+)@pos(\d+)-(\d+)")


def marks(run: RunData) -> Marks:
    """Steps at which an alarm or a phase began; the first phase is the run's own beginning."""
    return Marks(starts(run.alarms), [step for step, _ in run.phases[1:]])


def mark_legend(run: RunData) -> list[Legend]:
    """What the vertical lines are, phases by name and step."""
    legend = [Legend("alarm", "alarm begins")] if run.alarms else []
    told = [f"{name} from step {step:.0f}" for step, name in run.phases[1:]]
    return legend + ([Legend("phase", ", ".join(told))] if told else [])


def pictures(run: RunData, wanted: Sequence[Picture]) -> list[Chart]:
    """The wanted charts, without those of which nothing was logged."""
    charts = [_picture(run, picture) for picture in wanted]
    return [chart for chart in charts if chart is not None]


def _picture(run: RunData, picture: Picture) -> Chart | None:
    lines, legend, data, band = [], [], {}, None
    for style, (name, words) in enumerate(picture.lines, 1):
        series = run.series(name)
        if not len(series):
            continue
        lines.append(Line(series.steps, series.values, style))
        legend.append(Legend(f"line-{style}", words))
        data[name] = {"steps": series.steps.tolist(), "values": series.values.tolist()}
        if name in HEALTHY:
            band = HEALTHY[name]
    if not lines:
        return None
    if band is not None:
        legend.append(Legend("healthy", f"{band.low:g} to {band.high:g}: {band.source}"))
        data["healthy"] = {"low": band.low, "high": band.high, "source": band.source}
    legend += mark_legend(run) if picture.marked else []
    svg = curves(
        picture.title,
        lines,
        band=None if band is None else (band.low, band.high),
        marks=marks(run) if picture.marked else None,
        percent=picture.percent,
    )
    return Chart(picture.title, svg, data, legend, picture.note, picture.lines[0][0])


def heat_maps(run: RunData) -> list[Chart]:
    """Position by step, for the names that were logged by position."""
    charts = []
    for name, title in HEAT:
        found = by_position(run, name)
        if found is None:
            continue
        matrix, steps, edges = found
        rows = [[None if np.isnan(v) else float(v) for v in row] for row in matrix]
        data = {"steps": steps.tolist(), "edges": edges, "values": rows}
        charts.append(Chart(title, heat(name, matrix, steps, edges), data, name=f"{name}@pos"))
    return charts


def by_position(
    run: RunData, name: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]] | None:
    """Values of a name by position bin and step: (bins, steps), steps, edges; None without any."""
    found = {m[0]: (int(m[2]), int(m[3])) for n in run.names() if (m := _BIN.fullmatch(n))}
    bins = sorted((ends, key) for key, ends in found.items() if key.startswith(f"{name}@"))
    if not bins:
        return None
    rows = [run.series(key) for _, key in bins]
    steps = np.unique(np.concatenate([row.steps for row in rows]))
    matrix = np.full((len(rows), len(steps)), np.nan)
    for i, row in enumerate(rows):
        matrix[i, np.searchsorted(steps, row.steps)] = row.values
    edges = [ends[0] for ends, _ in bins] + [bins[-1][0][1] + 1]
    return matrix, steps, edges


def time_charts(run: RunData) -> list[Chart]:
    """Seconds a step by phase, throughput, memory."""
    wanted = [
        Picture(
            "Seconds a step",
            tuple(
                (f"time/{phase}_s", phase)
                for phase in ("rollout", "score", "update")
                if f"time/{phase}_s" in run.names()
            ),
            "Where a step's time goes.",
        ),
        Picture("Throughput", (("time/tokens_per_s", "completion tokens a second"),), ""),
        Picture("Memory", (("memory/peak_rss_mib", "peak of the process, MiB"),), ""),
    ]
    return pictures(run, [p for p in wanted if p.lines])
