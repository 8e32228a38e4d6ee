"""Metrics as time series, and how a series has changed: its newest window against its first.

Rules compare trends, not levels: the paper's failing run starts with a *higher* overlap ratio than
its good one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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
        self._squares: dict[str, list[float]] = {}  # squared differences of successive values
        # Of windows that never change, by metric and index of their first value.
        self._windows: dict[tuple[str, int], tuple[float, float]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row of metrics.jsonl; values that are not finite numbers are left out."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                series = self._series.setdefault(name, [])
                if series:
                    square = (float(value) - series[-1]) ** 2
                    self._squares.setdefault(name, []).append(square)
                series.append(float(value))

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
        values, w = self.values(name), self.window
        start, end = skip_windows * w, len(values) - ago
        if end - start < 2 * w:
            return None
        first, first_error = self._mean_and_error(name, start)
        last, last_error = self._mean_and_error(name, end - w)
        return Change(first, last, math.hypot(first_error, last_error))

    def _mean_and_error(self, name: str, start: int) -> tuple[float, float]:
        """Mean of a whole window and its standard error, from differences of successive values."""
        if (name, start) in self._windows:
            return self._windows[name, start]
        w = self.window
        squares = self._squares.get(name, [])[start : start + w - 1]
        error = math.sqrt(fmean(squares) / 2 / w) if squares else 0.0
        mean_and_error = fmean(self.values(name)[start : start + w]), error
        if start % w == 0:
            self._windows[name, start] = mean_and_error
        return mean_and_error

    def means(self, name: str) -> list[float]:
        """Means of successive whole windows, from the start."""
        starts = range(0, self.num_windows(name) * self.window, self.window)
        return [self._mean_and_error(name, start)[0] for start in starts]

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
