"""E19: prompts in the template of the teacher's post-training, or in another, of equal content."""

from __future__ import annotations

from dataclasses import dataclass

from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Experiment,
    Measurement,
    metric_curves,
)
from opd_lab.experiments.setups import ACCURACY, OVERLAP, TOP1
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.more_checkpoints import ASKED, PLAIN
from opd_lab.runs import Task

PAIR = ("quick-base", "more-asked")
CHANGES = ("train.steps=40", "optim.lr=1.5e-3")
TEST = 512
PANELS = {ACCURACY: "accuracy", TOP1: "overlap ratio, k = 1", OVERLAP: "overlap ratio, k = 16"}


@dataclass(frozen=True)
class Template:
    """One template: the teacher with it, and the student that was trained with it.

    Attributes:
        teacher: the teacher's accuracy.
        before: the student's.
        after: the student's, trained with this template and asked with it.
        elsewhere: the same student, asked with the other template.
        overlap: ratio at k = 1 at the end of the run.
    """

    teacher: float
    before: float
    after: float
    elsewhere: float
    overlap: float


@dataclass(frozen=True)
class Numbers:
    """One seed."""

    own: Template
    other: Template


def template() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E19",
        "The teacher's template",
        f"{PAIR[0]} learns from {PAIR[1]}, which was improved on prompts that begin with two words "
        "more (its template). Varied: the template of the training prompts, their content being "
        f"equal. {TEST} held-out problems; 40 steps.",
        "mean accuracy .51 with another template, .54 with the teacher's; overlap ends at .92 and "
        ".95",
        Numbers,
        measure,
        CLAIMS,
        COLUMNS,
        "Whether the template matters here depends on how much worse the teacher is without it: "
        "its accuracy with either stands in the table.",
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """One run per template."""
    tasks = {"the teacher's": Task(ASKED, test=TEST), "another": Task(PLAIN, test=TEST)}
    results = {
        name: workspace.run(Arm(*PAIR, (*CHANGES, "eval.0.every=20")), task)
        for name, task in tasks.items()
    }
    measured = []
    for name, task in tasks.items():
        elsewhere = next(other for label, other in tasks.items() if label != name)
        measured.append(
            Template(
                teacher=workspace.accuracy_on(PAIR[1], task),
                before=results[name].initial_accuracy(),
                after=results[name].accuracy(),
                elsewhere=workspace.accuracy_on(results[name].path / "final", elsewhere),
                overlap=results[name].last(TOP1),
            )
        )
    return Measurement(Numbers(*measured), metric_curves(results, PANELS))


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "each asked as it was trained, the student with the teacher's template is at least .03 "
        "more accurate",
        lambda n: n.own.after - n.other.after >= 0.03,
    ),
    Claim(
        "and overlaps more with the teacher at the end of training (k = 1)",
        lambda n: n.own.overlap > n.other.overlap,
    ),
    Claim(
        "the teacher itself is at least .03 more accurate with its template",
        lambda n: n.own.teacher - n.other.teacher >= 0.03,
    ),
)
COLUMNS: tuple[Column[Numbers], ...] = (
    Column("accuracy, the teacher's template", lambda n: n.own.after),
    Column("another template", lambda n: n.other.after),
    Column("the difference", lambda n: n.own.after - n.other.after),
    Column("teacher, its template", lambda n: n.own.teacher),
    Column("teacher, another", lambda n: n.other.teacher),
    Column("before, the teacher's template", lambda n: n.own.before),
    Column("before, another", lambda n: n.other.before),
    Column("trained with the teacher's, asked with another", lambda n: n.own.elsewhere),
    Column("trained with another, asked with the teacher's", lambda n: n.other.elsewhere),
    Column("k = 1 overlap at the end, the teacher's template", lambda n: n.own.overlap),
    Column("k = 1 overlap at the end, another", lambda n: n.other.overlap),
)
