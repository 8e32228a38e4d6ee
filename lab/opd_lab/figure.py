"""The figure of an experiment as a PNG file: a panel per quantity, mean and range over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opd_lab.experiments.results import SeedResult

Points = tuple[np.ndarray, np.ndarray]  # x (points,) and y (seeds, points)


def group_curves(results: Sequence[SeedResult]) -> dict[str, dict[str, Points]]:
    """Curves of all seeds by panel and label.

    Curves of different lengths are cut to the shortest; where the x values of seeds differ, they
    are averaged point by point.
    """
    panels: dict[str, dict[str, list[tuple[list[float], list[float]]]]] = {}
    for result in results:
        for curve in result.curves:
            if curve.x:
                labels = panels.setdefault(curve.panel, {})
                labels.setdefault(curve.label, []).append((curve.x, curve.y))
    return {
        panel: {label: _stack(curves) for label, curves in labels.items()}
        for panel, labels in panels.items()
    }


def _stack(curves: Sequence[tuple[list[float], list[float]]]) -> Points:
    length = min(len(x) for x, _ in curves)
    x, y = (np.array([curve[axis][:length] for curve in curves]) for axis in (0, 1))
    return x.mean(0), y


def is_log_y(panel: str) -> bool:
    """Whether a panel's values span orders of magnitude."""
    return "mass outside" in panel


def is_log_x(panel: str) -> bool:
    """Whether a panel's x values are powers of two."""
    return "common top k" in panel


def draw_figure(results: Sequence[SeedResult], path: Path) -> None:
    """Write the figure of an experiment.

    Args:
        results: one per seed.
        path: of the PNG file; its folder is created if absent.
    """
    from matplotlib.figure import Figure

    panels = group_curves(results)
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (panel, labels) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, panel, labels)
    for axis in [*figure.axes][len(panels) :]:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no version inside: the same numbers give the same file.
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _draw_panel(axis: Any, panel: str, labels: dict[str, Points]) -> None:
    for label, (x, y) in labels.items():
        (line,) = axis.plot(x, y.mean(0), label=label, linewidth=1.3)
        band = {"color": line.get_color(), "alpha": 0.15, "linewidth": 0}
        axis.fill_between(x, y.min(0), y.max(0), **band)
    axis.set_title(panel, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if is_log_y(panel):
        axis.set_yscale("log")
    if is_log_x(panel):
        axis.set_xscale("log", base=2)
    if len(labels) > 1:
        axis.legend(fontsize=7)
