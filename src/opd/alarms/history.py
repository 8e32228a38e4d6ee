"""Metric rows as series, and how a series has changed: its last window against its first.

Rules look at trends: the paper's failing run starts with a *higher* overlap ratio than its good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

POSITION = "@pos"  # marks of a name by absolute position: <name>@pos<first>-<last>


class Change(NamedTuple):
    """A window's mean at the start, the newest one, and what chance alone would do.

    Attributes:
        start: mean of the first window.
        now: mean of the newest one.
        noise: standard error of `now - start`, from differences of neighbouring values, so that a
            trend inside a window does not count as noise.
    """

    start: float
    now: float
    noise: float

    @property
    def by(self) -> float:
        """The difference, now - start."""
        return self.now - self.start

    def rises(self, least: float, sigmas: float = 3.0) -> bool:
        """Whether it rose by `least` or more, and by more than `sigmas` standard errors."""
        return self.by >= least and self.by > sigmas * self.noise

    def falls(self, least: float, sigmas: float = 3.0) -> bool:
        """Whether it fell by `least` or more, and by more than `sigmas` standard errors."""
        return -self.by >= least and -self.by > sigmas * self.noise


class History:
    """The values of every metric so far, in order of steps.

    Attributes:
        window: values in a window.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._series: dict[str, list[float]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row of metrics.jsonl; what is no finite number is left out."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._series.setdefault(name, []).append(float(value))

    def values(self, name: str) -> Sequence[float]:
        """A metric's values; empty if it was never logged."""
        return self._series.get(name, ())

    def windows(self, name: str) -> int:
        """How many whole windows of a metric there are."""
        return len(self.values(name)) // self.window

    def change(self, name: str, *, ago: int = 0, since: int = 0) -> Change | None:
        """First window against the newest one (or the one `ago` values earlier).

        None while the two would overlap. `since` counts whole windows left out at the start.
        """
        values, w = self.values(name)[since * self.window :], self.window
        end = len(values) - ago
        if end < 2 * w:
            return None
        first, last = values[:w], values[end - w : end]
        return Change(fmean(first), fmean(last), math.hypot(_error(first), _error(last)))

    def means(self, name: str) -> list[float]:
        """Means of successive whole windows, from the start."""
        values, w = self.values(name), self.window
        return [fmean(values[i * w : (i + 1) * w]) for i in range(len(values) // w)]

    def bins(self, name: str) -> list[tuple[int, str]]:
        """First position and full name of a metric's position bins, early ones first."""
        prefix = name + POSITION
        found = (n for n in self._series if n.startswith(prefix))
        return sorted((int(n[len(prefix) :].split("-")[0]), n) for n in found)

    def sets(self) -> list[str]:
        """Names of the held-out sets that were evaluated."""
        return [n.split("/")[1] for n in self._series if _is_accuracy(n)]

    def most_tries(self, held_out: str) -> tuple[int, Sequence[float]]:
        """The largest k above 1 of a set's pass@k, and its values; 1 and none if there is none."""
        prefix = f"eval/{held_out}/pass@"
        ks = [int(name[len(prefix) :]) for name in self._series if name.startswith(prefix)]
        k = max(ks, default=1)
        return (k, self.values(f"{prefix}{k}")) if k > 1 else (1, ())


def _is_accuracy(name: str) -> bool:
    return name.startswith("eval/") and name.endswith("/accuracy")


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean of neighbours in time."""
    steps = [(b - a) ** 2 for a, b in pairwise(values)]
    return math.sqrt(fmean(steps) / 2 / len(values)) if steps else 0.0


def latest(history: History, names: Iterable[str]) -> str | None:
    """The first of several names that was logged: a bound stands in for what it bounds."""
    return next((name for name in names if history.values(name)), None)
