"""Metrics as time series, and how a series has changed: its newest window against its first.

Rules compare trends, not levels: the paper's failing run starts with a *higher* overlap ratio than
its good one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

POSITION = "@pos"  # metrics by absolute position are named <name>@pos<first>-<last>


class Change(NamedTuple):
    """Means of the first and the newest window, and the noise of their difference.

    Attributes:
        start: mean of the first window.
        now: mean of the newest window.
        noise: standard error of `now - start`, from differences of neighbouring values, so that a
            trend inside a window does not count as noise.
    """

    start: float
    now: float
    noise: float

    @property
    def difference(self) -> float:
        """Now minus start."""
        return self.now - self.start

    def rises(self, min_rise: float, sigmas: float = 3.0) -> bool:
        """Whether it rose by `min_rise` or more, and by more than `sigmas` standard errors."""
        return self.difference >= min_rise and self.difference > sigmas * self.noise

    def falls(self, min_fall: float, sigmas: float = 3.0) -> bool:
        """Whether it fell by `min_fall` or more, and by more than `sigmas` standard errors."""
        return -self.difference >= min_fall and -self.difference > sigmas * self.noise


class History:
    """The values of every metric so far, in order of steps.

    Attributes:
        window: number of values in a window.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._series: dict[str, list[float]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row of metrics.jsonl; values that are not finite numbers are left out."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._series.setdefault(name, []).append(float(value))

    def values(self, name: str) -> Sequence[float]:
        """Values of a metric; empty if it was never logged."""
        return self._series.get(name, ())

    def num_windows(self, name: str) -> int:
        """How many whole windows a metric has."""
        return len(self.values(name)) // self.window

    def change(self, name: str, *, ago: int = 0, skip_windows: int = 0) -> Change | None:
        """The first window against the newest; None while the two would overlap.

        Args:
            name: of the metric.
            ago: number of newest values to leave out.
            skip_windows: number of whole windows to leave out at the start.
        """
        values, w = self.values(name)[skip_windows * self.window :], self.window
        end = len(values) - ago
        if end < 2 * w:
            return None
        first, last = values[:w], values[end - w : end]
        noise = math.hypot(_standard_error(first), _standard_error(last))
        return Change(fmean(first), fmean(last), noise)

    def means(self, name: str) -> list[float]:
        """Means of successive whole windows, from the start."""
        values, w = self.values(name), self.window
        return [fmean(values[i * w : (i + 1) * w]) for i in range(len(values) // w)]

    def position_bins(self, name: str) -> list[tuple[int, str]]:
        """First position and full name of a metric's position bins, early ones first."""
        prefix = name + POSITION
        names = (n for n in self._series if n.startswith(prefix))
        return sorted((int(n[len(prefix) :].split("-")[0]), n) for n in names)

    def eval_sets(self) -> list[str]:
        """Names of the held-out sets that were evaluated."""
        return [n.split("/")[1] for n in self._series if _is_accuracy(n)]

    def max_pass_at_k(self, eval_set: str) -> tuple[int, Sequence[float]]:
        """The largest k above 1 of a set's pass@k, and its values; 1 and none without any."""
        prefix = f"eval/{eval_set}/pass@"
        ks = [int(name[len(prefix) :]) for name in self._series if name.startswith(prefix)]
        k = max(ks, default=1)
        return (k, self.values(f"{prefix}{k}")) if k > 1 else (1, ())

    def first_logged(self, names: Iterable[str]) -> str | None:
        """The first of several names that was logged: a bound stands in for what it bounds."""
        return next((name for name in names if self.values(name)), None)


def _is_accuracy(name: str) -> bool:
    return name.startswith("eval/") and name.endswith("/accuracy")


def _standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean, from differences of successive values."""
    squares = [(b - a) ** 2 for a, b in pairwise(values)]
    return math.sqrt(fmean(squares) / 2 / len(values)) if squares else 0.0
