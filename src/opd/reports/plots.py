"""Static SVG by matplotlib: lines over steps, and position-by-step maps.

Only numbers of axes are drawn, never a text from a run. Colours are written as variables of the
page's style sheet, so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

# Colour written into the SVG -> variable of the style sheet that replaces it.
_VARIABLES = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--grid",
    "#110001": "--line-1",
    "#110002": "--line-2",
    "#110003": "--line-3",
    "#110004": "--line-4",
    "#110005": "--line-5",
    "#110006": "--line-6",
    "#220001": "--healthy",
    "#220002": "--alarm",
    "#220003": "--phase",
}
_COLOUR = {name: code for code, name in _VARIABLES.items()}
LINES = 6
_LONG = re.compile(r"-?\d+\.\d{3,}")
OUTER = (2, 98)  # percentiles of a map's cells at which its colours end
_SIZE = (4.2, 2.15)  # inches at 72 points; the page scales it to its column


@dataclass(frozen=True)
class Line:
    """One series: `style` 1..LINES picks the colour; an interval is drawn as bars or a band."""

    x: Floats
    y: Floats
    style: int = 1
    low: Floats | None = None
    high: Floats | None = None
    points: bool = False  # few measurements: dots with error bars
    dashed: bool = False
    whole: bool = False  # every value drawn strongly, none averaged away


@dataclass(frozen=True)
class Marks:
    """Steps at which something happened."""

    alarms: Sequence[float] = ()
    phases: Sequence[float] = ()


def curves(
    name: str,
    lines: Sequence[Line],
    *,
    band: tuple[float, float] | None = None,
    level: float | None = None,
    marks: Marks | None = None,
    percent: bool = False,
    log_x: bool = False,
    log_y: bool = False,
) -> Markup:
    """Lines over steps (or tokens, or seconds).

    Args:
        name: makes the ids inside the drawing unique on its page.
        lines: what to draw; a long one is drawn faint with its moving mean on top.
        band: healthy range to shade.
        level: horizontal dashed line, such as the teacher's accuracy.
        marks: vertical lines.
        percent: write the y axis in percent.
        log_x: logarithmic x axis, base 2.
        log_y: logarithmic y axis.
    """
    figure, axes = _figure()
    for line in lines:
        _draw(axes, line)
    if level is not None:
        axes.axhline(level, color=_COLOUR["--muted"], linewidth=1, linestyle=(0, (4, 3)))
    if band is not None:
        axes.axhspan(*band, color=_COLOUR["--healthy"], linewidth=0, zorder=0)
    if log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(*_limits(lines, [*(band or ()), *([] if level is None else [level])]))
    if log_x:
        axes.set_xscale("log", base=2)
    for step in marks.phases if marks else ():
        axes.axvline(step, color=_COLOUR["--phase"], linewidth=1.2, linestyle=(0, (1, 2)))
    for step in marks.alarms if marks else ():
        axes.axvline(step, color=_COLOUR["--alarm"], linewidth=1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    if percent:
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.4g}%")
    return _svg(figure, name)


def _limits(lines: Sequence[Line], others: Sequence[float]) -> tuple[float, float]:
    """Lower and upper end of the y axis: everything drawn, and a margin."""
    drawn = [v for line in lines for v in (line.y, line.low, line.high) if v is not None]
    values = np.concatenate([*drawn, np.array(others, dtype=np.float64)])
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


def _draw(axes: Any, line: Line) -> None:
    colour = _COLOUR[f"--line-{line.style}"]
    if line.points:
        if line.low is not None and line.high is not None:
            bars = np.abs(np.stack([line.y - line.low, line.high - line.y]))
            axes.errorbar(line.x, line.y, bars, color=colour, linewidth=1.2, capsize=2)
        axes.plot(line.x, line.y, color=colour, linewidth=1.5, marker="o", markersize=3.5)
        return
    style = (0, (4, 2)) if line.dashed else "-"
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
    window = 1 if line.whole else max(1, len(line.y) // 20)
    if window == 1:
        axes.plot(line.x, line.y, color=colour, linewidth=1.5, linestyle=style)
        return
    axes.plot(line.x, line.y, color=colour, linewidth=0.7, alpha=0.35)
    axes.plot(line.x, moving_mean(line.y, window), color=colour, linewidth=1.7, linestyle=style)


def moving_mean(values: Floats, window: int) -> Floats:
    """Centred mean over about `window` values, over fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first = np.maximum(index - window // 2, 0)
    last = np.minimum(index + window // 2 + 1, len(values))
    means: Floats = (sums[last] - sums[first]) / (last - first)
    return means


def _size_alone(match: re.Match[str]) -> str:
    return f"font-size: {match[1]}px;" if match[1] else ""


def heat(name: str, matrix: Floats, steps: Floats, edges: Sequence[int]) -> Markup:
    """Position (rows, first at the bottom) by step (columns); NaN cells stay empty.

    Args:
        name: makes ids unique.
        matrix: (bins, steps).
        steps: (steps,) in order.
        edges: (bins + 1,) first position of each bin, and the end.
    """
    figure, axes = _figure()
    # Equal spacing is assumed by an image; steps are consecutive wherever rollouts were diagnosed.
    extent = (float(steps[0]) - 0.5, float(steps[-1]) + 0.5, float(edges[0]), float(edges[-1]))
    # A few cells of one token would use up the colours: the ends of the scale stand for the rest.
    ends = np.nanpercentile(matrix, OUTER)
    image = axes.imshow(
        matrix,
        vmin=ends[0],
        vmax=ends[1],
        origin="lower",
        aspect="auto",
        interpolation="none",
        cmap="cividis",
        extent=extent,
    )
    axes.grid(False)
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=14, extend="both", extendfrac=0.03)
    bar.outline.set_visible(False)
    _style_ticks(bar.ax)
    return _svg(figure, name)


def _figure() -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(True, color=_COLOUR["--grid"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(_whole_numbers(6))
    axes.yaxis.set_major_locator(_whole_numbers(5, integer=False))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_COLOUR["--muted"])
        axes.spines[side].set_linewidth(0.6)
    _style_ticks(axes)
    return figure, axes


def _whole_numbers(count: int, *, integer: bool = True) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, integer=integer, steps=[1, 2, 5, 10])


def _style_ticks(axes: Any) -> None:
    axes.tick_params(
        labelsize=9, length=2, width=0.6, color=_COLOUR["--muted"], labelcolor=_COLOUR["--muted"]
    )


def _svg(figure: Figure, name: str) -> Markup:
    from matplotlib import rc_context

    sink = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(sink, format="svg", transparent=True, metadata=nothing)
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"font(?:-family)?: (?:(\d+)px )?'[^;\"]*;?", _size_alone, text)
    text = re.sub(r'\bid="(?![pm][0-9a-f]{10}")[^"]*"', "", text)  # nothing refers to the others
    text = re.sub(r'transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text)
    text = re.sub(r'"[^"<]*"', lambda m: _LONG.sub(lambda n: f"{float(n[0]):.2f}", m[0]), text)
    text = re.sub(r"\s+xmlns(?::xlink)?=\"[^\"]*\"|<!--.*?-->", "", text, flags=re.DOTALL)
    for code, variable in _VARIABLES.items():
        text = text.replace(code, f"var({variable})")
    # Safe: matplotlib made it, from numbers alone.
    return Markup(re.sub(r">\s+<", "><", text).strip())
