"""E22: whether the gradients of a failing teacher cancel over positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Curve,
    Experiment,
    Measurement,
    keyed_columns,
)
from opd_lab.experiments.family import OTHER
from opd_lab.experiments.setups import QUICK_SETUP as SETUP
from opd_lab.experiments.workspace import Workspace
from opd_lab.gradient_probe import RESPONSES, Coherence

GOOD = SETUP.large_improved
FAILING = {
    OTHER: "other pattern",
    SETUP.opening: "leads after an opening alone",
    SETUP.large: "same data",
}
LABELS = {GOOD: "good"} | FAILING


@dataclass(frozen=True)
class Numbers:
    """One seed, by teacher."""

    by_teacher: dict[str, Coherence]

    @property
    def good(self) -> Coherence:
        """Of the teacher that teaches."""
        return self.by_teacher[GOOD]

    @property
    def failing(self) -> list[Coherence]:
        """Of those that do not."""
        return [self.by_teacher[name] for name in FAILING]


def cancellation() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E22",
        "Do gradients cancel over positions",
        f"{SETUP.base} answers {RESPONSES} held-out problems; gradients of the full reverse KL to "
        "a teacher are taken at every position apart, nothing is trained. Varied: the teacher, one "
        "that teaches and three that do not (E1, E2).",
        "a hypothesis (6.2), called unverified there: the failing teacher's advantages point in "
        "different directions at different positions and cancel",
        Numbers,
        measure,
        CLAIMS,
        columns(),
        "The ratio depends on the number of positions, which is the same for all teachers. At the "
        "first step only, and only in this world.",
        beyond=True,
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """One measurement per teacher; the curve is over the teachers, in the order of `LABELS`."""
    coherences = {name: workspace.coherence(SETUP.base, name, SETUP.task) for name in LABELS}
    order = [float(i) for i in range(len(coherences))]
    curves = [
        Curve("|sum| / sum of norms, teacher by teacher", label, order, values)
        for label, values in (
            ("over all positions", [c.batch for c in coherences.values()]),
            ("within a response", [c.response for c in coherences.values()]),
        )
    ]
    return Measurement(Numbers(coherences), curves)


def columns() -> tuple[Column[Numbers], ...]:
    """Ratios and norms by teacher."""
    return (
        *by_teacher("|sum| / sum of norms", lambda c: c.batch),
        *by_teacher("within a response", lambda c: c.response),
        *by_teacher("|sum| / root of squares", lambda c: c.against_chance),
        *by_teacher("mean norm of a position", lambda c: c.norm),
    )


def by_teacher(title: str, value: Callable[[Coherence], float]) -> tuple[Column[Numbers], ...]:
    """One number of each teacher."""
    labels = {name: f"{title}, {label}" for name, label in LABELS.items()}
    return keyed_columns(labels, lambda n: {name: value(c) for name, c in n.by_teacher.items()})


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "with every teacher that fails, |sum| / sum of norms over all positions is at most half of "
        "the good teacher's",
        lambda n: all(c.batch <= n.good.batch / 2 for c in n.failing),
    ),
    Claim(
        "so it is within a response",
        lambda n: all(c.response <= n.good.response / 2 for c in n.failing),
    ),
    Claim(
        "with some failing teacher gradients cancel: the sum is shorter than that of orthogonal "
        "gradients of the same norms",
        lambda n: any(c.against_chance < 1 for c in n.failing),
    ),
)
