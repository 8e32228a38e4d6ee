"""How numbers are formatted."""

from __future__ import annotations

import math

from opd.core.percents import percents
from opd.core.stats import Estimate
from opd.reports.document import Number

NONE = Number(None, "\u2013")


def minus(text: str) -> str:
    """The text with minus signs, which are as wide as plus signs, instead of hyphens."""
    return text.replace("-", "\u2212")


def percent(value: float) -> Number:
    """A fraction of 1 in percent, one decimal."""
    return Number(value, _percent(value))


def _percent(value: float) -> str:
    return minus(f"{percents(value)}%") if math.isfinite(value) else "not bounded"


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return minus(f"{100 * value:+z.1f} points")


def points_range(low: float, high: float) -> str:
    """The 95 % interval of a difference of fractions."""
    return minus(f"95% interval {100 * low:+z.1f} to {100 * high:+z.1f}")


def plain(value: float, digits: int = 3) -> Number:
    """A number with `digits` significant digits; whole numbers with all of theirs."""
    if not math.isfinite(value):
        return Number(value, "not bounded" if math.isinf(value) else "not a number")
    if value == int(value) and abs(value) < 1e15:
        return Number(value, minus(f"{int(value):,}"))
    return Number(value, minus(f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"))


def p_value(value: float) -> str:
    """A p-value; those of a permutation test are not resolved below 0.001."""
    return "p < 0.001" if value < 0.001 else f"p = {plain(value, 2).text}"


def interval(low: float, high: float) -> str:
    """A 95 % interval of fractions."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "interval not bounded"
    return minus(f"{percents(low)} to {percents(high)}%")


def estimate(value: Estimate) -> Number:
    """A fraction with its interval."""
    return Number(value.value, _percent(value.value), interval(value.low, value.high))


def length(value: Estimate) -> Number:
    """A mean number of tokens with its interval."""
    note = f"{plain(value.low).text} to {plain(value.high).text}"
    return Number(value.value, plain(value.value).text, note)


def nats(value: Estimate) -> Number:
    """A mean in nats with its interval, three decimals."""
    note = minus(f"{value.low:.3f} to {value.high:.3f}")
    return Number(value.value, minus(f"{value.value:.3f}"), note)


def setting(value: object) -> str | Number:
    """A value of the configuration."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return Number(value, f"{value:g}" if isinstance(value, float) else str(value))


def seconds(value: float) -> str:
    """A duration in its two largest units."""
    whole = round(value)
    if value < 1:
        return f"{1000 * value:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
