"""E20: a small teacher of the student's family, or a large one of another, equally accurate."""

from __future__ import annotations

from dataclasses import dataclass

from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Experiment,
    Measurement,
    metric_curves,
)
from opd_lab.experiments.setups import ACCURACY, TOP1
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.more_checkpoints import PLAIN
from opd_lab.runs import RunResult, Task

STUDENT = "quick-base"
SMALL, WORDED, OTHER = "quick-clean", "more-worded-large", "more-other-large"
LABELS = {
    SMALL: "small, same family",
    WORDED: "large, other family, same method in other words",
    OTHER: "large, other family, other method",
}
CHANGES = ("train.steps=40", "eval.0.every=20", "optim.lr=1.5e-3")
TASK = Task(PLAIN)


@dataclass(frozen=True)
class Teacher:
    """One teacher: its accuracy, the student's after it, overlap at k = 1 at both ends."""

    own: float
    student: float
    overlap_start: float
    overlap_end: float


@dataclass(frozen=True)
class Numbers:
    """One seed."""

    before: float
    small: Teacher
    worded: Teacher
    other: Teacher

    @property
    def spread(self) -> float:
        """Largest difference of the teachers' own accuracies."""
        own = [self.small.own, self.worded.own, self.other.own]
        return max(own) - min(own)


def family() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E20",
        "Small of the family, or large of another",
        f"{STUDENT} (width 64) learns from its own improved self (width 64) and from two models of "
        "width 80 that share no ancestor with it: one solves problems in the same steps with "
        "other words between them, one in the other pattern. Varied: the teacher. "
        f"{TASK.test} held-out problems; 40 steps.",
        "advice, no experiment: prefer a teacher of the student's family to a large one of another",
        Numbers,
        measure,
        CLAIMS,
        COLUMNS,
        "A family is a common ancestor here: weights and words.",
        beyond=True,
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """One run per teacher."""
    results = {name: workspace.run(Arm(STUDENT, name, CHANGES), TASK) for name in LABELS}
    small, worded, other = (teacher_of(workspace, name, results[name]) for name in LABELS)
    numbers = Numbers(results[SMALL].initial_accuracy(), small, worded, other)
    by_label = {LABELS[name]: result for name, result in results.items()}
    panels = {ACCURACY: "accuracy", TOP1: "overlap ratio, k = 1"}
    return Measurement(numbers, metric_curves(by_label, panels))


def teacher_of(workspace: Workspace, name: str, result: RunResult) -> Teacher:
    """The numbers of one teacher."""
    return Teacher(
        own=workspace.accuracy_on(name, TASK),
        student=result.accuracy(),
        overlap_start=result.first(TOP1),
        overlap_end=result.last(TOP1),
    )


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "the small one of the family leaves the student at least .05 above both large ones",
        lambda n: n.small.student - max(n.worded.student, n.other.student) >= 0.05,
    ),
    Claim(
        "and at least .4 above the large one of the other pattern",
        lambda n: n.small.student - n.other.student >= 0.4,
    ),
    Claim("the teachers' own accuracies differ by at most .1", lambda n: n.spread <= 0.1),
    Claim(
        "overlap at k = 1 starts highest with the small one of the family",
        lambda n: n.small.overlap_start > max(n.worded.overlap_start, n.other.overlap_start),
    ),
)
COLUMNS: tuple[Column[Numbers], ...] = (
    Column("accuracy before", lambda n: n.before),
    Column(LABELS[SMALL], lambda n: n.small.student),
    Column(LABELS[WORDED], lambda n: n.worded.student),
    Column(LABELS[OTHER], lambda n: n.other.student),
    Column(
        "small of the family minus large in other words",
        lambda n: n.small.student - n.worded.student,
    ),
    Column(f"teacher itself, {LABELS[SMALL]}", lambda n: n.small.own),
    Column(f"teacher itself, {LABELS[WORDED]}", lambda n: n.worded.own),
    Column(f"teacher itself, {LABELS[OTHER]}", lambda n: n.other.own),
    Column(f"k = 1 overlap at the start, {LABELS[SMALL]}", lambda n: n.small.overlap_start),
    Column(LABELS[WORDED], lambda n: n.worded.overlap_start),
    Column(LABELS[OTHER], lambda n: n.other.overlap_start),
)
