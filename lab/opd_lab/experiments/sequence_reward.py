"""E10: does the reward of whole rollouts distinguish a helpful teacher from a useless one?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opd_lab.experiments.experiment import Claim, Column, Curve, Experiment, Measurement
from opd_lab.experiments.setups import ENTROPY_GAP, MASS, Setup
from opd_lab.experiments.workspace import Workspace

K = 16
ONE_STEP = 3  # tokens of a reasoning step
PANEL = "what separates teachers (0 good, 1 other pattern, 2 same data)"


@dataclass(frozen=True)
class TeacherNumbers:
    """Measurements of one teacher before training; `gain`: continuation gain after one step."""

    auroc: float
    mass: float
    entropy_gap: float
    gain: float


@dataclass(frozen=True)
class Numbers:
    """One seed."""

    good: TeacherNumbers
    other: TeacherNumbers
    same_data: TeacherNumbers


MEASURES: dict[str, Callable[[TeacherNumbers], float]] = {
    "auroc": lambda t: t.auroc,
    "mass": lambda t: t.mass,
    "entropy_gap": lambda t: t.entropy_gap,
    "gain1": lambda t: t.gain,
}


def sequence_reward(setup: Setup) -> Experiment[Numbers]:
    """See the module."""

    def measure_teacher(workspace: Workspace, teacher: str) -> TeacherNumbers:
        overlap = workspace.overlap(setup.base, teacher, setup.task, (K,))[K]
        (gain,) = workspace.continuation_gains(setup.base, teacher, setup.task, [ONE_STEP])
        auroc = workspace.reward_auroc(setup.base, teacher, setup.task).value
        return TeacherNumbers(auroc, overlap[MASS], overlap[ENTROPY_GAP], gain)

    def measure(workspace: Workspace) -> Measurement[Numbers]:
        names = (setup.large_improved, setup.other, setup.large)
        teachers = [measure_teacher(workspace, name) for name in names]
        curves = [
            Curve(PANEL, name, [0.0, 1.0, 2.0], [*map(value, teachers)])
            for name, value in MEASURES.items()
        ]
        return Measurement(Numbers(*teachers), curves)

    return Experiment(
        "E10",
        "AUROC of sequence reward",
        f"{setup.base}'s rollouts, scored by the three teachers of E4. Varied: the teacher.",
        "AUROC of mean reward for right against wrong rollouts: .733 (good teacher), .751 "
        "(failing)",
        Numbers,
        measure,
        CLAIMS,
        COLUMNS,
        "Both kinds of failing teacher were tried. With either the mean reward is at chance here, "
        "so that AUROC would tell them apart, other than in the paper; a teacher that is wrong "
        "like the student cannot mark its errors. Continuation gain tells all three apart.",
    )


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "a failing teacher's AUROC is about as good as the good one's: within .1 for one of the "
        "two failing teachers",
        lambda n: n.good.auroc - max(n.other.auroc, n.same_data.auroc) <= 0.1,
    ),
    Claim("the good teacher's AUROC is .6 or more", lambda n: n.good.auroc >= 0.6),
    Claim(
        "continuation gain after one step separates: .3 or more for the good teacher, .15 or less "
        "for both others",
        lambda n: n.good.gain >= 0.3 and max(n.other.gain, n.same_data.gain) <= 0.15,
    ),
)
COLUMNS: tuple[Column[Numbers], ...] = (
    Column("AUROC, good", lambda n: n.good.auroc),
    Column("other pattern", lambda n: n.other.auroc),
    Column("same data", lambda n: n.same_data.auroc),
    Column("continuation gain after one step, good", lambda n: n.good.gain),
    Column("other pattern", lambda n: n.other.gain),
    Column("same data", lambda n: n.same_data.gain),
    Column("overlap mass, good", lambda n: n.good.mass),
    Column("other pattern", lambda n: n.other.mass),
    Column("same data", lambda n: n.same_data.mass),
)
