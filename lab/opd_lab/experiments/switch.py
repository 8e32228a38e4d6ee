"""E23: one of the two models thinks another way, because a word of the prompt says so."""

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
from opd_lab.experiments.setups import ACCURACY, TOP1
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.more_checkpoints import PLAIN, SWITCHED
from opd_lab.runs import Task
from opd_lab.worlds import PrefixedWorld

PAIR = ("more-switch-base", "more-switch-large")
TASK = Task(PLAIN)
ON = f"{SWITCHED.switch} {{problem}}"
STUDENT_ON = (f"prompts.template={ON}", f"eval.0.template={ON}")
CHANGES = ("train.steps=40", "eval.0.every=20", "optim.lr=1.5e-3")
OFF, TEACHER, BOTH = "off", "teacher", "both"
ARMS: dict[str, tuple[str, ...]] = {
    OFF: (),
    TEACHER: (f"teacher.prompt={SWITCHED.switch} {{prompt}}",),
    BOTH: STUDENT_ON,
}
TEACHER_TASKS = {OFF: TASK, BOTH: Task(PrefixedWorld(PLAIN, SWITCHED.switch))}
LABELS = {
    OFF: "off at both",
    TEACHER: "on at the teacher alone",
    BOTH: "on at both",
}


@dataclass(frozen=True)
class Side:
    """One arm: the student's accuracy before and after, asked as in training; overlap, k = 1."""

    before: float
    after: float
    overlap: float

    @property
    def gain(self) -> float:
        """What training brought."""
        return self.after - self.before


@dataclass(frozen=True)
class Numbers:
    """One seed, by arm; `teacher`: its accuracy off and on."""

    arms: dict[str, Side]
    teacher: dict[str, float]


def switch() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E23",
        "Thinking switched on at one side",
        f"{PAIR[0]} learns from {PAIR[1]}; both follow the first pattern, or the second if the "
        f'prompt begins with "{SWITCHED.switch}" (as a thinking mode is switched in a chat '
        "template). Varied: at which side the word stands. Evaluated as trained; "
        f"{TASK.test} held-out problems; 40 steps.",
        "not compared in the paper, whose teachers and students are all asked without thinking",
        Numbers,
        measure,
        CLAIMS,
        columns(),
        "Both patterns are of equal length here; a real thinking mode is also longer. The word at "
        "the student alone is not measured: a teacher's prompt contains the student's.",
        beyond=True,
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """One run per arm."""
    results = {
        name: workspace.run(Arm(*PAIR, (*CHANGES, *changes)), TASK)
        for name, changes in ARMS.items()
    }
    numbers = Numbers(
        {
            name: Side(result.initial_accuracy(), result.accuracy(), result.first(TOP1))
            for name, result in results.items()
        },
        {name: workspace.accuracy_on(PAIR[1], task) for name, task in TEACHER_TASKS.items()},
    )
    by_label = {LABELS[name]: result for name, result in results.items()}
    panels = {ACCURACY: "accuracy", TOP1: "overlap ratio, k = 1"}
    return Measurement(numbers, metric_curves(by_label, panels))


def columns() -> tuple[Column[Numbers], ...]:
    """Accuracy and overlap by arm."""
    overlap = {name: f"k = 1 overlap at the start, {label}" for name, label in LABELS.items()}
    accuracy: tuple[Column[Numbers], ...] = keyed_columns(
        LABELS, lambda n: {name: side.after for name, side in n.arms.items()}
    )
    at_the_start: tuple[Column[Numbers], ...] = keyed_columns(
        overlap, lambda n: {name: side.overlap for name, side in n.arms.items()}
    )
    return (
        *accuracy,
        Column("before, off", lambda n: n.arms[OFF].before),
        Column("before, on", lambda n: n.arms[BOTH].before),
        Column("teacher, off", lambda n: n.teacher[OFF]),
        Column("teacher, on", lambda n: n.teacher[BOTH]),
        *at_the_start,
    )


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "the word at the teacher alone brings at most half of what it brings at none, or at both",
        lambda n: n.arms[TEACHER].gain <= min(n.arms[OFF].gain, n.arms[BOTH].gain) / 2,
    ),
    Claim(
        "overlap at k = 1 shows it before training: at least .3 lower",
        lambda n: n.arms[OFF].overlap - n.arms[TEACHER].overlap >= 0.3,
    ),
    Claim(
        "the teacher is as accurate either way (within .1)",
        lambda n: abs(n.teacher[OFF] - n.teacher[BOTH]) <= 0.1,
    ),
)
