"""E4: what happens inside a good run and inside two failing ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Curve,
    Experiment,
    Measurement,
    metric_curves,
)
from opd_lab.experiments.setups import ENTROPY_GAP, GRAD_NORM, MASS, OVERLAP, Setup
from opd_lab.experiments.workspace import Checkpoint, Workspace
from opd_lab.runs import RunResult

MASS_KS = (1, 2, 4, 8, 16, 32)
RATIO_KS = (1, 4, 16)
LOSS, EXTREME = "train/loss", "diag/extreme_advantage_diff"
PANELS = {
    LOSS: "loss",
    GRAD_NORM: "gradient norm",
    EXTREME: "extreme-advantage difference",
    ENTROPY_GAP: "entropy gap",
    "diag/overlap_advantage": "overlap-token advantage",
    MASS: "overlap mass",
}


@dataclass(frozen=True)
class Change:
    """A metric at the start and at the end of a run."""

    start: float
    end: float


@dataclass(frozen=True)
class RunNumbers:
    """The metrics of one run that claims and tables are about."""

    loss: Change
    extreme_difference: Change
    entropy_gap: Change
    median_grad_norm: float
    lowest_mass: float  # on the common top 16, over the whole run
    ratio: dict[int, Change]  # overlap ratio by k


@dataclass(frozen=True)
class Numbers:
    """One seed; `mass_start` and `mass_end`: mass on the common top k by k, compatible teacher."""

    compatible: RunNumbers
    other: RunNumbers
    same_data: RunNumbers
    mass_start: dict[int, float]
    mass_end: dict[int, float]


def mechanism(setup: Setup) -> Experiment[Numbers]:
    """See the module."""
    arms = {
        "compatible": setup.compatible,
        "other pattern": setup.other_pattern,
        "same data": setup.same_data,
    }

    def measure(workspace: Workspace) -> Measurement[Numbers]:
        results = workspace.run_each(arms, setup.task)
        trained = results["compatible"].path / "final"

        def numbers_of(label: str) -> RunNumbers:
            ends: dict[str, Checkpoint] = {
                "start": setup.base,
                "end": results[label].path / "final",
            }
            ratio = {
                when: workspace.overlap(student, arms[label].teacher, setup.task, RATIO_KS)
                for when, student in ends.items()
            }
            by_k = {k: Change(*(ratio[when][k][OVERLAP] for when in ends)) for k in RATIO_KS}
            return run_numbers(results[label], by_k)

        numbers = Numbers(
            compatible=numbers_of("compatible"),
            other=numbers_of("other pattern"),
            same_data=numbers_of("same data"),
            mass_start=mass_by_k(workspace, setup, setup.base),
            mass_end=mass_by_k(workspace, setup, trained),
        )
        curves = metric_curves(results, PANELS)
        for when, mass in (("start", numbers.mass_start), ("end", numbers.mass_end)):
            ks, label = [float(k) for k in mass], f"compatible, {when}"
            curves.append(Curve("mass on the common top k", label, ks, [*mass.values()]))
        return Measurement(numbers, curves)

    return Experiment(
        "E4",
        "Mechanism",
        f"{setup.base} learns from {setup.large_improved} (good), {setup.other} (failing: other "
        f"pattern) and {setup.large} (failing: same data). The runs of E1 and E2. Varied: the "
        "teacher; for the mass of the common top k also k.",
        "good: overlap ratio at k = 16 .72 to .91, failing: flat near .78. Good: loss large, then "
        "falling; gradient norm large; extreme difference shrinks; overlap mass .97-.99 for the "
        "whole run. Failing: loss small from the start, gradients small, extreme difference "
        "stays large",
        Numbers,
        measure,
        CLAIMS,
        COLUMNS,
        "The paper has one failing pair, ours fail in two ways: with a teacher of the same data "
        "loss and gradients are small, as in the paper, except for single steps with a badly "
        "formed rollout; with one of another pattern both are large. Sixteen of 61 words are a "
        "quarter of this vocabulary: the mass on them says little, and the ratio counts words that "
        "neither model ever writes.",
    )


def run_numbers(result: RunResult, ratio: dict[int, Change]) -> RunNumbers:
    """The numbers of one run, whose overlap ratios by k have been measured."""
    loss, extreme, entropy_gap = (
        Change(result.first(metric), result.last(metric)) for metric in (LOSS, EXTREME, ENTROPY_GAP)
    )
    return RunNumbers(
        loss,
        extreme,
        entropy_gap,
        median_grad_norm=float(np.median(result.curve(GRAD_NORM)[1])),
        lowest_mass=min(result.curve(MASS)[1]),
        ratio=ratio,
    )


def mass_by_k(workspace: Workspace, setup: Setup, student: Checkpoint) -> dict[int, float]:
    """The student's mass on the top k it has in common with the compatible teacher."""
    by_k = workspace.overlap(student, setup.large_improved, setup.task, MASS_KS)
    return {k: by_k[k][MASS] for k in MASS_KS}


def rise(run: RunNumbers, k: int) -> float:
    """What the overlap ratio at k rose by."""
    return run.ratio[k].end - run.ratio[k].start


def _halves(change: Change) -> bool:
    return abs(change.end) <= abs(change.start) / 2


def ratio_columns(k: int) -> tuple[Column[Numbers], ...]:
    """Overlap ratio at k of the three runs, at the start and the end."""
    runs: dict[str, Callable[[Numbers], RunNumbers]] = {
        "good": lambda n: n.compatible,
        "other pattern": lambda n: n.other,
        "same data": lambda n: n.same_data,
    }
    columns = []
    for label, run in runs.items():
        start, end = f"overlap ratio at k = {k}, {label}, start", f"k = {k}, {label}, end"
        columns.append(Column(start, lambda n, run=run: run(n).ratio[k].start))  # type: ignore[misc]
        columns.append(Column(end, lambda n, run=run: run(n).ratio[k].end))  # type: ignore[misc]
    return tuple(columns)


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "good run: extreme-advantage difference and entropy gap at least halve; with the other "
        "pattern the entropy gap does not",
        lambda n: (
            _halves(n.compatible.extreme_difference)
            and _halves(n.compatible.entropy_gap)
            and not _halves(n.other.entropy_gap)
        ),
    ),
    Claim(
        "good run: the loss falls to a quarter or less",
        lambda n: n.compatible.loss.end <= n.compatible.loss.start / 4,
    ),
    Claim(
        "same-data teacher: the loss is small from the start (a third of the good run's or less), "
        "and so is the median gradient norm (half or less)",
        lambda n: (
            n.same_data.loss.start <= n.compatible.loss.start / 3
            and n.same_data.median_grad_norm <= n.compatible.median_grad_norm / 2
        ),
    ),
    Claim(
        "the paper's signature: the overlap ratio at k = 16 rises by .05 or more in the good run, "
        "and by more than in either failing run",
        lambda n: (
            rise(n.compatible, 16) >= 0.05
            and rise(n.compatible, 16) > max(rise(n.other, 16), rise(n.same_data, 16))
        ),
    ),
    Claim(
        "at k = 1 the good run ends at .9 or more, the other pattern below .6",
        lambda n: n.compatible.ratio[1].end >= 0.9 and n.other.ratio[1].end < 0.6,
    ),
    Claim(
        "the common top 16, of 61 words, holds .97 or more of the student's mass in the whole run",
        lambda n: n.compatible.lowest_mass >= 0.97,
    ),
    Claim(
        "the common top 4 does so too, at the start and the end",
        lambda n: min(n.mass_start[4], n.mass_end[4]) >= 0.97,
    ),
)
COLUMNS: tuple[Column[Numbers], ...] = (
    Column("loss at the start, good", lambda n: n.compatible.loss.start),
    Column("same data", lambda n: n.same_data.loss.start),
    Column("other pattern", lambda n: n.other.loss.start),
    Column("median gradient norm, good", lambda n: n.compatible.median_grad_norm),
    Column("same data", lambda n: n.same_data.median_grad_norm),
    Column("extreme difference, good, start", lambda n: n.compatible.extreme_difference.start),
    Column("end", lambda n: n.compatible.extreme_difference.end),
    Column("other pattern, end", lambda n: n.other.extreme_difference.end),
    Column("mass on the common top k at the start: k = 4", lambda n: n.mass_start[4]),
    Column("k = 8", lambda n: n.mass_start[8]),
    Column("k = 16", lambda n: n.mass_start[16]),
    Column("lowest mass on the common top 16, good", lambda n: n.compatible.lowest_mass),
    *(column for k in RATIO_KS for column in ratio_columns(k)),
)
