"""The checkpoints and settings of experiments that exist in two sizes: full and quick."""

from __future__ import annotations

from dataclasses import dataclass

from opd_lab.checkpoints import CHAIN, QUICK
from opd_lab.experiments.workspace import Arm
from opd_lab.runs import Task

ACCURACY = "eval/task/accuracy"
OVERLAP = "diag/overlap_ratio"
MASS = "diag/overlap_mass_student"
TOP1 = "diag/top1_agreement"
ENTROPY_GAP = "diag/entropy_gap_abs"
REVERSE_KL = "diag/reverse_kl"
GRAD_NORM = "train/grad_norm"


@dataclass(frozen=True)
class Setup:
    """Checkpoints by their part in an experiment, and what differs between the sizes.

    Attributes:
        task: what is trained and evaluated on.
        base: the student.
        large: a larger model of the same data.
        improved: the base after post-training.
        large_improved: the larger model after post-training; the compatible teacher.
        other: an equally accurate teacher of the other thinking pattern.
        opening: a teacher that is right after an opening the student never writes, and otherwise
            as wrong as the base.
        two_ways: a teacher that is right in the second pattern, and as wrong as the base in the
            first.
        changes: overrides of every run.
        quick: the small size.
        equivalence_margin: in accuracy; small models change at speeds that differ more.
        base_margin: in accuracy, around the base, within which a fall must end; short runs do not
            fall all the way.
    """

    task: Task
    base: str
    large: str
    improved: str
    large_improved: str
    other: str
    opening: str
    two_ways: str
    changes: tuple[str, ...] = ()
    quick: bool = False
    equivalence_margin: float = 0.08
    base_margin: float = 0.08

    def arm(self, student: str, teacher: str, *changes: str) -> Arm:
        """A run with the setup's own settings."""
        return Arm(student, teacher, (*self.changes, *changes))

    @property
    def compatible(self) -> Arm:
        """A run that should succeed."""
        return self.arm(self.base, self.large_improved)

    @property
    def other_pattern(self) -> Arm:
        """A run that should fail: the teacher follows the other pattern."""
        return self.arm(self.base, self.other)

    @property
    def same_data(self) -> Arm:
        """A run that should change nothing: the teacher knows no more."""
        return self.arm(self.base, self.large)


FULL_SETUP = Setup(
    Task(CHAIN),
    "chain-base",
    "chain-large",
    "chain-rl",
    "chain-large-rl",
    "chain-other-rl",
    "chain-opening",
    "chain-two-ways",
)
QUICK_SETUP = Setup(
    Task(QUICK, test=384),
    "quick-base",
    "quick-large",
    "quick-clean",
    "quick-large-clean",
    "quick-other-clean",
    "quick-opening",
    "quick-two-ways",
    ("train.steps=30", "eval.0.every=10", "optim.lr=1.5e-3"),
    quick=True,
    equivalence_margin=0.12,
    base_margin=0.15,
)
