"""What an experiment is: a measurement per seed, claims about its numbers, a verdict over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from opd.core import stats
from opd_lab.experiments.workspace import Workspace
from opd_lab.runs import RunResult

N = TypeVar("N")  # the dataclass of an experiment's numbers
K = TypeVar("K")
Verdict = Literal["reproduced", "partly", "not"]


@dataclass(frozen=True)
class Curve:
    """A curve of one seed: `label` in the panel `panel` of the figure."""

    panel: str
    label: str
    x: list[float]
    y: list[float]


def metric_curve(result: RunResult, metric: str, panel: str, label: str) -> Curve:
    """A run's metric by step."""
    return Curve(panel, label, *result.curve(metric))


def metric_curves(results: Mapping[str, RunResult], panels: Mapping[str, str]) -> list[Curve]:
    """Several metrics of several runs.

    Args:
        results: runs by label.
        panels: title of the panel by metric.
    """
    return [
        metric_curve(result, metric, panel, label)
        for label, result in results.items()
        for metric, panel in panels.items()
    ]


@dataclass(frozen=True)
class Measurement(Generic[N]):
    """What one seed gave."""

    numbers: N
    curves: list[Curve]


@dataclass(frozen=True)
class Claim(Generic[N]):
    """A sentence about one seed's numbers that is true or not.

    Attributes:
        text: the sentence.
        holds: whether it is true of a seed.
        noisy: it fails on some seeds at this experiment's length, so no test may rest on it.
    """

    text: str
    holds: Callable[[N], bool]
    noisy: bool = False


@dataclass(frozen=True)
class Column(Generic[N]):
    """A number of the tables, with its label."""

    label: str
    value: Callable[[N], float]


def keyed_columns(
    labels: Mapping[K, str], values: Callable[[N], Mapping[K, float]]
) -> tuple[Column[N], ...]:
    """A column per key of `labels`, from a dictionary of numbers."""

    def value_of(key: K) -> Callable[[N], float]:
        return lambda numbers: values(numbers)[key]

    return tuple(Column(label, value_of(key)) for key, label in labels.items())


@dataclass(frozen=True)
class Experiment(Generic[N]):
    """A finding of the paper, or a question beside it.

    Attributes:
        name: its number in the project's specification, such as E1.
        title: a few words.
        design: which student, which teachers, what varies.
        paper: what the paper found, with its numbers.
        numbers: type of one seed's numbers.
        measure: one seed's numbers and curves.
        claims: the finding as sentences; the first one is the main one.
        columns: numbers of the tables, in order.
        remark: what to know when reading the result.
        beyond: the paper did not measure it, so nothing can be reproduced.
    """

    name: str
    title: str
    design: str
    paper: str
    numbers: type[N]
    measure: Callable[[Workspace], Measurement[N]]
    claims: tuple[Claim[N], ...]
    columns: tuple[Column[N], ...]
    remark: str = ""
    beyond: bool = False


def verdict(experiment: Experiment[Any], seeds: Sequence[Any]) -> Verdict:
    """Reproduced: every claim holds on every seed; not: the first one fails on most; else partly.

    Args:
        experiment: whose claims are judged.
        seeds: numbers of each seed.
    """
    held = [[claim.holds(numbers) for numbers in seeds] for claim in experiment.claims]
    if all(map(all, held)):
        return "reproduced"
    return "not" if 2 * sum(held[0]) < len(seeds) else "partly"


def mean_over_seeds(column: Column[Any], seeds: Sequence[Any]) -> stats.Estimate:
    """Mean of a column over seeds with Student's interval: a seed is the unit."""
    return stats.mean(np.array([column.value(numbers) for numbers in seeds]))
