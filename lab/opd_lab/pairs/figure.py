"""docs/forecasts.png: what was predicted against what came, and how often the intervals hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from opd_lab.pairs.judging import Case
from opd_lab.pairs.records import worlds_of

NOMINAL = np.linspace(0.05, 0.95, 19)  # levels of central intervals


def draw_judgement(cases: Sequence[Case], path: Path) -> None:
    """Write the figure.

    Args:
        cases: runs with forecasts by models that do not know their worlds.
        path: of the PNG file.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    worlds = worlds_of(case.outcome for case in cases)
    colours = colormaps["tab20"]
    for i, world in enumerate(worlds):
        colour = colours(i % 20)
        chosen = [case for case in cases if case.outcome.world == world]
        predicted = [case.predicted for case in chosen]
        changes = [case.outcome.change for case in chosen]
        left.scatter(predicted, changes, s=9, alpha=0.7, color=colour, label=world)
        held = [coverage(chosen, level) for level in NOMINAL]
        right.plot(NOMINAL, held, linewidth=0.9, color=colour)
    right.plot(NOMINAL, [coverage(cases, x) for x in NOMINAL], "k", linewidth=2, label="all worlds")
    for axis, ends in ((left, (-1, 1)), (right, (0, 1))):
        axis.plot(ends, ends, "k--", linewidth=0.8)
        axis.grid(alpha=0.3)
    left.set(xlabel="predicted change of accuracy", ylabel="change", title="Forecast and outcome")
    right.set(xlabel="nominal level of the interval", ylabel="fraction inside", title="Coverage")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, ncols=6, loc="outside lower center")
    right.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def coverage(cases: Sequence[Case], level: float) -> float:
    """Fraction of changes in the central interval of a level."""
    return float(np.mean([case.inside(level) for case in cases]))
