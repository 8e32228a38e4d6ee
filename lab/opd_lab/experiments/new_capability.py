"""E2: a larger teacher of the same data against an improved one."""

from __future__ import annotations

from dataclasses import dataclass

from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Experiment,
    Measurement,
    keyed_columns,
    metric_curves,
)
from opd_lab.experiments.setups import ACCURACY, OVERLAP, REVERSE_KL, Setup
from opd_lab.experiments.workspace import Workspace

HALF_IMPROVED = "chain-half-rl"
PANELS = {ACCURACY: "accuracy", REVERSE_KL: "reverse KL", OVERLAP: "overlap ratio, k = 16"}


@dataclass(frozen=True)
class Numbers:
    """One seed."""

    gain_same_data: float
    recovery: float
    overlap_same_data: float
    overlap_improved: float
    half_improved: dict[str, float]  # accuracy of such a teacher and of its student; full setup


def new_capability(setup: Setup) -> Experiment[Numbers]:
    """See the module."""

    def measure(workspace: Workspace) -> Measurement[Numbers]:
        before = workspace.accuracy(setup.base)
        teacher = workspace.accuracy(setup.large_improved)
        results = {
            "improved teacher": workspace.run(setup.compatible, setup.task),
            "same-data larger teacher": workspace.run(setup.same_data, setup.task),
        }
        improved, same_data = results.values()
        half_improved = {}
        if not setup.quick:
            arm = setup.arm(setup.base, HALF_IMPROVED)
            result = results["half-improved teacher"] = workspace.run(arm, setup.task)
            half_improved["teacher"] = workspace.accuracy(HALF_IMPROVED)
            half_improved["student"] = result.accuracy()
        numbers = Numbers(
            gain_same_data=same_data.accuracy() - same_data.initial_accuracy(),
            recovery=(improved.accuracy() - before) / (teacher - before),
            overlap_same_data=same_data.first(OVERLAP),
            overlap_improved=improved.first(OVERLAP),
            half_improved=half_improved,
        )
        return Measurement(numbers, metric_curves(results, PANELS))

    return Experiment(
        "E2",
        "New capability",
        f"{setup.base} learns from {setup.large} (same data, larger) and from "
        f"{setup.large_improved} (improved). Varied: the teacher's post-training.",
        "gap recovery 5.3 % against 16.9 % (initial overlap 74.2 % and 71.5 %); 15.6 % against "
        "58.6 % (75.7 % and 70.3 %)",
        Numbers,
        measure,
        CLAIMS,
        COLUMNS if setup.quick else COLUMNS + HALF_COLUMNS,
        "The larger same-data model is no better than the base by construction, so there is "
        "nothing to gain from it; what is seen is that its small loss is no good news.",
    )


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim("the improved teacher's lead is recovered by .8 or more", lambda n: n.recovery >= 0.8),
    Claim(
        "the same-data teacher changes accuracy by at most .06",
        lambda n: abs(n.gain_same_data) <= 0.06,
    ),
    Claim(
        "initial overlap is no lower with the same-data teacher",
        lambda n: n.overlap_same_data >= n.overlap_improved - 0.01,
    ),
)
COLUMNS: tuple[Column[Numbers], ...] = (
    Column("gap recovery, improved teacher", lambda n: n.recovery),
    Column("accuracy gain, same-data larger teacher", lambda n: n.gain_same_data),
    Column("initial overlap, same data", lambda n: n.overlap_same_data),
    Column("improved", lambda n: n.overlap_improved),
)
HALF_COLUMNS: tuple[Column[Numbers], ...] = keyed_columns(
    {"teacher": "accuracy of a half-improved teacher", "student": "its student"},
    lambda n: n.half_improved,
)
