"""E4: what happens inside a good run and inside two failing ones."""

from __future__ import annotations

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
from opd_lab.experiments.setups import ENTROPY_GAP, GRAD_NORM, MASS, Setup
from opd_lab.experiments.workspace import Checkpoint, Workspace
from opd_lab.runs import RunResult

MASS_KS = (1, 2, 4, 8, 16, 32)
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
        numbers = Numbers(
            compatible=run_numbers(results["compatible"]),
            other=run_numbers(results["other pattern"]),
            same_data=run_numbers(results["same data"]),
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
        "good: loss large, then falling; gradient norm large; extreme difference shrinks; overlap "
        "mass .97-.99. Failing: loss small from the start, gradients small, extreme difference "
        "stays large",
        Numbers,
        measure,
        CLAIMS,
        COLUMNS,
        "The paper has one failing pair, ours fail in two ways: with a teacher of the same data "
        "loss and gradients are small, as in the paper, except for single steps with a badly "
        "formed rollout; with one of another pattern both are large.",
    )


def run_numbers(result: RunResult) -> RunNumbers:
    """The numbers of one run."""
    loss, extreme, entropy_gap = (
        Change(result.first(metric), result.last(metric)) for metric in (LOSS, EXTREME, ENTROPY_GAP)
    )
    return RunNumbers(loss, extreme, entropy_gap, float(np.median(result.curve(GRAD_NORM)[1])))


def mass_by_k(workspace: Workspace, setup: Setup, student: Checkpoint) -> dict[int, float]:
    """The student's mass on the top k it has in common with the compatible teacher."""
    by_k = workspace.overlap(student, setup.large_improved, setup.task, MASS_KS)
    return {k: by_k[k][MASS] for k in MASS_KS}


def _halves(change: Change) -> bool:
    return abs(change.end) <= abs(change.start) / 2


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
        "the common top 16 holds .97 or more of the student's mass, at the start and the end",
        lambda n: min(n.mass_start[16], n.mass_end[16]) >= 0.97,
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
)
