"""How numbers are written for people."""

from __future__ import annotations

import math

from opd.core.stats import Estimate
from opd.report.document import Number

NONE = Number(None, "\u2013")


def percent(value: float) -> Number:
    """A share of 1 in percent, one decimal."""
    return Number(value, _percent(value))


def _percent(value: float) -> str:
    return "not bounded" if not math.isfinite(value) else f"{100 * value:.1f}%"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f} points"


def plain(value: float, digits: int = 3) -> Number:
    """A number of so many significant digits."""
    if not math.isfinite(value):
        return Number(value, "not bounded" if math.isinf(value) else "not a number")
    if value == int(value) and abs(value) < 1e15:
        return Number(value, f"{int(value):,}")
    return Number(value, f"{value:,.{digits}g}" if abs(value) < 1e4 else f"{value:,.0f}")


def interval(low: float, high: float) -> str:
    """A 95 % interval of shares."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "interval not bounded"
    return f"{100 * low:.1f} to {100 * high:.1f}%"


def estimate(found: Estimate) -> list[Number | str]:
    """Cells: value, interval, number of prompts."""
    return [percent(found.value), interval(found.low, found.high), Number(found.n, f"{found.n:,}")]


def seconds(value: float) -> str:
    """A duration in the two units that matter."""
    whole = round(value)
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
