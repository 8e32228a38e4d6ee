"""Static SVG by matplotlib: line plots over steps, and heatmaps of position by step.

Only axis numbers are drawn, never a text from a run. Colours are variables of the style sheet, so
that one drawing serves the light and the dark theme.
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

from opd.reports.formatting import minus

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
MAX_LINES = 6
_LONG_DECIMAL = re.compile(r"-?\d+\.\d{3,}")
COLOUR_PERCENTILES = (2, 98)  # of the cells of a heatmap, at which its colour scale ends
_SIZE = (4.2, 2.15)  # inches at 72 points; HTML scales it to the column


@dataclass(frozen=True)
class Line:
    """One series, arrays (n,) each.

    Attributes:
        x: steps, tokens or seconds.
        y: values.
        style: 1 to MAX_LINES, selects the colour.
        low: lower end of the interval, drawn as error bars or as a band.
        high: upper end.
        points: for few measurements: dots with error bars.
        dashed: draw a dashed line.
        whole: draw every value; otherwise a long series is drawn faint with its moving mean on top.
    """

    x: Floats
    y: Floats
    style: int = 1
    low: Floats | None = None
    high: Floats | None = None
    points: bool = False
    dashed: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Scale:
    """How the axes of a line plot are scaled: y in percent, logarithmic x (base 2) or y."""

    percent: bool = False
    log_x: bool = False
    log_y: bool = False


LINEAR = Scale()
PERCENT = Scale(percent=True)


@dataclass(frozen=True)
class Marks:
    """Steps marked by vertical lines."""

    alarms: Sequence[float] = ()
    phases: Sequence[float] = ()


def curves(
    name: str,
    lines: Sequence[Line],
    *,
    band: tuple[float, float] | None = None,
    level: float | None = None,
    marks: Marks | None = None,
    scale: Scale = LINEAR,
) -> Markup:
    """Lines over steps (or tokens, or seconds).

    Args:
        name: makes the ids inside the SVG unique within the document.
        lines: to draw.
        band: healthy range to shade.
        level: horizontal dashed line, such as the teacher's accuracy.
        marks: vertical lines.
        scale: of the axes.
    """
    figure, axes = _figure()
    for line in lines:
        _draw_line(axes, line)
    if level is not None:
        axes.axhline(level, color=_COLOUR["--muted"], linewidth=1, linestyle=(0, (4, 3)))
    if band is not None:
        axes.axhspan(*band, color=_COLOUR["--healthy"], linewidth=0, zorder=0)
    if scale.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(*_y_limits(lines, [*(band or ()), *([] if level is None else [level])]))
    if scale.log_x:
        axes.set_xscale("log", base=2)
    for step in marks.phases if marks else ():
        axes.axvline(step, color=_COLOUR["--phase"], linewidth=1.2, linestyle=(0, (1, 2)))
    for step in marks.alarms if marks else ():
        axes.axvline(step, color=_COLOUR["--alarm"], linewidth=1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    if scale.percent:
        axes.yaxis.set_major_formatter(lambda y, _: minus(f"{100 * y:.4g}%"))
    elif not scale.log_y and max(map(abs, axes.get_ylim())) >= 1000:
        axes.yaxis.set_major_formatter(lambda y, _: minus(f"{y:,.10g}"))
    return _svg(figure, name)


def _y_limits(lines: Sequence[Line], others: Sequence[float]) -> tuple[float, float]:
    """Lower and upper end of the y axis: every value, and a margin."""
    arrays = [v for line in lines for v in (line.y, line.low, line.high) if v is not None]
    values = np.concatenate([*arrays, np.array(others, dtype=np.float64)])
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


def _draw_line(axes: Any, line: Line) -> None:
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


def _font_size_only(match: re.Match[str]) -> str:
    return f"font-size: {match[1]}px;" if match[1] else ""


def heatmap(name: str, matrix: Floats, steps: Floats, edges: Sequence[int]) -> Markup:
    """Position (rows, first at the bottom) by step (columns); NaN cells stay empty.

    Args:
        name: makes the ids inside the SVG unique within the document.
        matrix: (bins, steps).
        steps: (steps,) in order.
        edges: (bins + 1,) first position of each bin, and the end.
    """
    figure, axes = _figure()
    # An image assumes equal spacing: steps are consecutive wherever rollouts were diagnosed.
    extent = (float(steps[0]) - 0.5, float(steps[-1]) + 0.5, float(edges[0]), float(edges[-1]))
    # A few cells of one token would use up the colour scale: values beyond its ends are clipped.
    ends = np.nanpercentile(matrix, COLOUR_PERCENTILES)
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
    axes.xaxis.set_major_locator(_tick_locator(6))
    axes.yaxis.set_major_locator(_tick_locator(5, integer=False))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_COLOUR["--muted"])
        axes.spines[side].set_linewidth(0.6)
    _style_ticks(axes)
    return figure, axes


def _tick_locator(count: int, *, integer: bool = True) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, integer=integer, steps=[1, 2, 5, 10])


def _style_ticks(axes: Any) -> None:
    axes.tick_params(
        labelsize=9, length=2, width=0.6, color=_COLOUR["--muted"], labelcolor=_COLOUR["--muted"]
    )


def _svg(figure: Figure, name: str) -> Markup:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    sink = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        # As savefig, which would draw everything a first time only to begin with the layout.
        FigureCanvasSVG(figure)
        layout, dpi = figure.get_layout_engine(), figure.dpi
        assert layout is not None
        figure.dpi = 72
        layout.execute(figure)
        figure.dpi = dpi
        figure.set_layout_engine(None)
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(sink, format="svg", transparent=True, metadata=no_metadata)
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"font(?:-family)?: (?:(\d+)px )?'[^;\"]*;?", _font_size_only, text)
    text = re.sub(r'\bid="(?![pm][0-9a-f]{10}")[^"]*"', "", text)  # nothing refers to the others
    text = re.sub(r'transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text)
    text = re.sub(
        r'"[^"<]*"', lambda m: _LONG_DECIMAL.sub(lambda n: f"{float(n[0]):.2f}", m[0]), text
    )
    text = re.sub(r"\s+xmlns(?::xlink)?=\"[^\"]*\"|<!--.*?-->", "", text, flags=re.DOTALL)
    for code, variable in _VARIABLES.items():
        text = text.replace(code, f"var({variable})")
    # Safe: made by matplotlib from numbers only.
    text = re.sub(r'(?<=\bd=")[^"]*', _short_path, text)
    text = re.sub(r'<path d="[^"]*" style="fill: none"/>', "", text)  # frames without a line
    text = re.sub(r">\s+<", "><", text).strip()
    for _ in range(2):
        text = re.sub(r"<g ?></g>", "", text)
    return Markup(text.replace("<g >", "<g>"))


def _short_path(match: re.Match[str]) -> str:
    """A path without the spaces that separate nothing."""
    return re.sub(r" ?([A-Za-z]) ?", r"\1", " ".join(match[0].split()))
