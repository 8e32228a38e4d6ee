"""E1: two teachers of about equal accuracy, one of another thinking pattern."""

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
from opd_lab.experiments.setups import ACCURACY, MASS, OVERLAP, TOP1, Setup
from opd_lab.experiments.workspace import Arm, Checkpoint, Workspace
from opd_lab.runs import RunResult

KS = (1, 4, 16)
PANELS = {
    ACCURACY: "accuracy",
    MASS: "overlap mass, k = 16",
    TOP1: "overlap ratio, k = 1",
    OVERLAP: "overlap ratio, k = 16",
}
# Students whose corpus holds a little of the other pattern; in the full setup only.
TRACES = {"chain-mix03": "other pattern, trace of .03", "chain-mix10": "trace of .10"}


@dataclass(frozen=True)
class Overlap:
    """Overlap ratio, and the student's mass on the overlap, by support size."""

    ratio: dict[int, float]
    mass: dict[int, float]


@dataclass(frozen=True)
class TeacherNumbers:
    """One teacher: accuracy of student and teacher, overlap before and after training."""

    accuracy: float
    teacher_accuracy: float
    start: Overlap
    end: Overlap


@dataclass(frozen=True)
class Numbers:
    """One seed; `traces` is the accuracy by student, taught by the other pattern."""

    compatible: TeacherNumbers
    other: TeacherNumbers
    traces: dict[str, float]


def thinking_pattern(setup: Setup) -> Experiment[Numbers]:
    """See the module."""

    def measure(workspace: Workspace) -> Measurement[Numbers]:
        arms = {"compatible": setup.compatible, "other pattern": setup.other_pattern}
        results = workspace.run_each(arms, setup.task)
        compatible, other = (
            measure_teacher(workspace, setup, arm, results[label]) for label, arm in arms.items()
        )
        traces = {}
        if not setup.quick:
            for student, label in TRACES.items():
                results[label] = workspace.run(setup.arm(student, setup.other), setup.task)
                traces[student] = results[label].accuracy()
        return Measurement(Numbers(compatible, other, traces), metric_curves(results, PANELS))

    return Experiment(
        "E1",
        "Thinking pattern",
        f"{setup.base} learns from {setup.large_improved} (same pattern) and from {setup.other} "
        "(other pattern), about equally accurate teachers. Varied: the teacher"
        + (
            "."
            if setup.quick
            else "; and the fraction of the other pattern in the student's corpus."
        ),
        "mean accuracy about .20 (compatible) and .15 after 200 steps, from teachers of equal "
        "benchmark score; initial overlap higher with the compatible one",
        Numbers,
        measure,
        CLAIMS,
        COLUMNS if setup.quick else COLUMNS + TRACE_COLUMNS,
    )


def measure_teacher(
    workspace: Workspace, setup: Setup, arm: Arm, result: RunResult
) -> TeacherNumbers:
    """The numbers of one teacher's run."""

    def overlap(student: Checkpoint) -> Overlap:
        by_k = workspace.overlap(student, arm.teacher, setup.task, KS)
        ratio, mass = ({k: values[m] for k, values in by_k.items()} for m in (OVERLAP, MASS))
        return Overlap(ratio, mass)

    return TeacherNumbers(
        accuracy=result.accuracy(),
        teacher_accuracy=workspace.accuracy(arm.teacher),
        start=overlap(setup.base),
        end=overlap(result.path / "final"),
    )


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "accuracy with the compatible teacher is at least .4 higher",
        lambda n: n.compatible.accuracy - n.other.accuracy >= 0.4,
    ),
    Claim(
        "the teachers' own accuracies differ by at most .15",
        lambda n: abs(n.compatible.teacher_accuracy - n.other.teacher_accuracy) <= 0.15,
    ),
    Claim(
        "overlap at k = 1 starts at least .5 higher with the compatible teacher",
        lambda n: n.compatible.start.ratio[1] - n.other.start.ratio[1] >= 0.5,
    ),
    Claim(
        "overlap mass at k = 16 ends at .97 or more, and higher than with the other pattern",
        lambda n: n.compatible.end.mass[16] >= max(0.97, n.other.end.mass[16]),
    ),
)
COLUMNS: tuple[Column[Numbers], ...] = (
    Column("accuracy, compatible", lambda n: n.compatible.accuracy),
    Column("accuracy, other pattern", lambda n: n.other.accuracy),
    Column("k = 1 overlap at the start, compatible", lambda n: n.compatible.start.ratio[1]),
    Column("other pattern", lambda n: n.other.start.ratio[1]),
    Column("k = 16 overlap at the start, compatible", lambda n: n.compatible.start.ratio[16]),
    Column("other pattern", lambda n: n.other.start.ratio[16]),
)
TRACE_COLUMNS: tuple[Column[Numbers], ...] = keyed_columns(
    {
        "chain-mix03": "accuracy, other pattern, .03 of it in the corpus",
        "chain-mix10": "accuracy, other pattern, .10 of it",
    },
    lambda n: n.traces,
)
