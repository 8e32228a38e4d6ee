"""Estimates in words, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable

from opd.core.percents import percents
from opd.core.stats import Estimate


def percent(e: Estimate) -> str:
    """A fraction in per cent, with its interval."""
    return f"{percents(e.value)}% ({_bounds(e, lambda x: f'{percents(x)}%')})"


def points(e: Estimate) -> str:
    """A difference of fractions in percentage points, with its interval."""
    return f"{100 * e.value:+z.1f} points ({_bounds(e, lambda x: f'{100 * x:+z.1f}')})"


def number(e: Estimate) -> str:
    """An estimate with its interval."""
    return f"{e.value:.3g} ({_bounds(e, lambda x: f'{x:.3g}')})"


def _bounds(e: Estimate, written: Callable[[float], str]) -> str:
    """Of an interval; one prompt has none."""
    if not (math.isfinite(e.low) and math.isfinite(e.high)):
        return "interval not known"
    return f"{written(e.low)} to {written(e.high)}"
