"""E11: support size and mode of the loss; which default deserves to be the default."""

from __future__ import annotations

from dataclasses import dataclass

from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Curve,
    Experiment,
    Measurement,
    keyed_columns,
    metric_curve,
)
from opd_lab.experiments.setups import ACCURACY
from opd_lab.experiments.supports import ROUTE_PAIR, ROUTE_TASK
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.runs import RunResult

PAPER, REFERENCE, TAIL = MODES = ("paper", "reference", "tail")
SIZES = {
    PAPER: (4, 16, 64),  # k = 1 is refused: its gradient is exactly zero
    REFERENCE: (1, 4, 16, 64),
    TAIL: (1, 4, 16, 64),
}
SUPPORT_MASS = "diag/support_mass"
DEFAULTS = (PAPER, 16)  # the lab's own


@dataclass(frozen=True)
class ModeNumbers:
    """One mode by k: accuracy after training, and the student's mass outside the support."""

    accuracy: dict[int, float]
    mass_outside: dict[int, float]


@dataclass(frozen=True)
class Numbers:
    """One seed; `modes` by name."""

    before: float
    sampled: float
    modes: dict[str, ModeNumbers]


def support_size() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E11",
        "Support size and mode",
        "route-base learns from route-rl, vocabulary of 519. Varied: k and mode (k = 1 in paper "
        "mode has a gradient of exactly zero, and is refused).",
        "AIME24 of sampled, k = 1, 4, 16, 64: .454 .446 .473 .458 .463; only k = 1 is bad (spikes "
        "of entropy and gradient), k above 4 brings nothing",
        Numbers,
        measure,
        CLAIMS,
        columns(),
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """One run of the sampled token, and one per mode and size."""
    sampled = workspace.run(Arm(*ROUTE_PAIR, ("loss.support=sampled",)), ROUTE_TASK)
    curves = [metric_curve(sampled, ACCURACY, f"accuracy, {mode}", "sampled") for mode in MODES]
    modes = {}
    for mode in MODES:
        results = {k: workspace.run(arm(mode, k), ROUTE_TASK) for k in SIZES[mode]}
        modes[mode] = ModeNumbers(
            accuracy={k: result.accuracy() for k, result in results.items()},
            mass_outside={k: 1 - result.last(SUPPORT_MASS) for k, result in results.items()},
        )
        for k, result in results.items():
            curves.append(metric_curve(result, ACCURACY, f"accuracy, {mode}", f"k = {k}"))
            curves.append(mass_outside(result, f"mass outside, {mode}", f"k = {k}"))
    numbers = Numbers(sampled.initial_accuracy(), sampled.accuracy(), modes)
    return Measurement(numbers, curves)


def arm(mode: str, k: int) -> Arm:
    """The run of a mode and a size."""
    if (mode, k) == DEFAULTS:
        return Arm(*ROUTE_PAIR)
    return Arm(*ROUTE_PAIR, (f"loss.k={k}", f"loss.mode={mode}"))


def mass_outside(result: RunResult, panel: str, label: str) -> Curve:
    """The student's mass outside the support by step, for a logarithmic axis."""
    steps, inside = result.curve(SUPPORT_MASS)
    return Curve(panel, label, steps, [max(1 - mass, 1e-6) for mass in inside])


def columns() -> tuple[Column[Numbers], ...]:
    """Accuracy by mode and size, and the mass outside the support."""
    accuracy: tuple[Column[Numbers], ...] = keyed_columns(
        {(mode, k): f"{mode}, k = {k}" for mode in MODES for k in SIZES[mode]},
        lambda n: {(mode, k): a for mode, m in n.modes.items() for k, a in m.accuracy.items()},
    )
    outside_4: tuple[Column[Numbers], ...] = keyed_columns(
        {mode: f"mass outside the top 4 at the end, {mode}" for mode in MODES},
        lambda n: {mode: m.mass_outside[4] for mode, m in n.modes.items()},
    )
    outside_16: tuple[Column[Numbers], ...] = keyed_columns(
        {mode: f"outside the top 16, {mode}" for mode in MODES},
        lambda n: {mode: m.mass_outside[16] for mode, m in n.modes.items()},
    )
    return (
        Column("accuracy before", lambda n: n.before),
        Column("sampled token", lambda n: n.sampled),
        *accuracy,
        *outside_4,
        *outside_16,
    )


def _reference(numbers: Numbers, k: int) -> float:
    return numbers.modes[REFERENCE].accuracy[k]


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "k = 1 is worse than k = 16 by .05 or more, in the published code's mode",
        lambda n: _reference(n, 16) - _reference(n, 1) >= 0.05,
    ),
    Claim(
        "beyond k = 4 nothing is gained: k = 16 and 64 within .05 of k = 4, in that mode",
        lambda n: max(_reference(n, 16), _reference(n, 64)) - _reference(n, 4) <= 0.05,
    ),
    Claim(
        "the sampled token is enough: within .05 of k = 16",
        lambda n: _reference(n, 16) - n.sampled <= 0.05,
    ),
)
