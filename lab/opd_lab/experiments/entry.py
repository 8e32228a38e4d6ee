"""What an experiment is: arms, measurements of one seed, claims, and a verdict over seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from opd.core import stats
from opd_lab import probes, runs, zoo
from opd_lab.checkpoints import RECIPES
from opd_lab.runs import Result, Task

Numbers = Mapping[str, float]
Verdict = Literal["reproduced", "partly", "not"]


@dataclass(frozen=True)
class Line:
    """A curve of one seed: `label` in the panel `panel` of the picture."""

    panel: str
    label: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Found:
    """What one seed gave."""

    numbers: dict[str, float]
    lines: list[Line]


@dataclass(frozen=True)
class Claim:
    """A sentence about one seed's numbers that is true or not."""

    says: str
    holds: Callable[[Numbers], bool]


@dataclass(frozen=True)
class Arm:
    """One run: who learns from whom, and what differs from the lab's defaults."""

    student: str
    teacher: str
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """An experiment.

    Attributes:
        name: the paper's number in the project's specification, such as E1.
        title: a few words.
        design: which student, which teachers, what varies.
        paper: what the paper found, with its numbers.
        measure: one seed's numbers and curves.
        claims: the finding as sentences; the first is the heart of it.
        shown: numbers of the table, in order, with their labels.
        remark: what to know when reading the result.
    """

    name: str
    title: str
    design: str
    paper: str
    measure: Callable[[Bench], Found]
    claims: tuple[Claim, ...]
    shown: dict[str, str]
    remark: str = ""


@dataclass(frozen=True)
class Bench:
    """Where one seed's experiments happen: checkpoints, runs and probes, all cached."""

    seed: int
    cache: Path

    def model(self, name: str) -> Path:
        """A checkpoint's folder; see `zoo.checkpoint`."""
        return zoo.checkpoint(name, self.seed, self.cache)

    def accuracy(self, name: str) -> float:
        """A checkpoint's accuracy on its card."""
        value: float = zoo.card(name, self.seed, self.cache)["accuracy"]["value"]
        return value

    def run(self, arm: Arm, task: Task) -> Result:
        """The run of an arm."""
        student, teacher = self.model(arm.student), self.model(arm.teacher)
        where = {"seed": self.seed, "cache": self.cache}
        return runs.run(student, teacher, task, **where, changes=arm.changes)  # type: ignore[arg-type]

    def runs(self, arms: Mapping[str, Arm], task: Task) -> dict[str, Result]:
        """The runs of several arms by label."""
        return {label: self.run(arm, task) for label, arm in arms.items()}

    def overlap(
        self, student: str | Path, teacher: str, task: Task, ks: Sequence[int]
    ) -> dict[int, dict[str, float]]:
        """Diagnostics at several support sizes; see `probes.overlap`."""
        folder = self.model(student) if isinstance(student, str) else student
        where = {"seed": self.seed, "cache": self.cache}
        return probes.overlap(folder, self.model(teacher), task, ks, **where)  # type: ignore[arg-type]

    def gains(
        self, student: str, teacher: str, task: Task, cuts: Sequence[int]
    ) -> list[stats.Estimate]:
        """Continuation gain at several prefix lengths; see `probes.continuation_gain`."""
        where = {"seed": self.seed, "cache": self.cache}
        pair = self.model(student), self.model(teacher)
        return probes.continuation_gain(*pair, task, cuts, **where)  # type: ignore[arg-type]

    def auroc(self, student: str, teacher: str, task: Task) -> stats.Estimate:
        """AUROC of mean sequence reward; see `probes.reward_auroc`."""
        pair = self.model(student), self.model(teacher)
        return probes.reward_auroc(*pair, task, seed=self.seed, cache=self.cache)


def line(result: Result, metric: str, panel: str, label: str) -> Line:
    """A run's metric as a curve."""
    return Line(panel, label, *result.curve(metric))


def measured(entry: Entry, bench: Bench) -> dict[str, Any]:
    """One seed of an entry as plain JSON, with its time."""
    started = time.monotonic()
    found = entry.measure(bench)
    return {
        "name": entry.name,
        "seed": bench.seed,
        "seconds": round(time.monotonic() - started, 1),
        "numbers": found.numbers,
        "lines": [vars(each) for each in found.lines],
    }


def verdict(entry: Entry, seeds: Sequence[Numbers]) -> Verdict:
    """The rule: reproduced if every claim holds on every seed; not, if the first one fails on most.

    Anything between is partly.
    """
    held = [[claim.holds(numbers) for numbers in seeds] for claim in entry.claims]
    if all(map(all, held)):
        return "reproduced"
    return "not" if 2 * sum(held[0]) < len(seeds) else "partly"


def over_seeds(values: Sequence[float]) -> stats.Estimate:
    """Mean over seeds with Student's interval: a seed is the unit."""
    return stats.mean(np.array(values))


def used_checkpoints(prefix: str) -> list[str]:
    """Checkpoints of a family, parents first."""
    return [name for name in RECIPES if name.startswith(prefix)]


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Keep one seed's numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
