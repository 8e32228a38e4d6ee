"""The end of a run: which student is kept, its folder, and the summary."""

from __future__ import annotations

from typing import Any

from opd.models.away import give_back
from opd.models.fsdp import gather_model
from opd.models.saving import save_final
from opd.run.layout import BEST, FINAL
from opd.training.checkpoints import load_student
from opd.training.evaluate import recovery, recovery_by_teacher
from opd.training.evaluations import evaluate_once, load_evaluation, mean_accuracy
from opd.training.interventions import Interventions
from opd.training.session import Session

MAX_LOSS = 0.03  # of held-out accuracy, against the best student, that `recipe: auto` puts up with
NOT_EVALUATED_BEFORE = (
    "no evaluation before training: the set was added or changed when the run was resumed"
)


def finish(session: Session, step: int) -> dict[str, Any]:
    """Write final/ and summary.json: before, after, teacher and gap recovery of every set.

    Args:
        session: whose loop has ended.
        step: updates made.

    Returns:
        The summary.
    """
    if session.interventions.stopped_by is None:
        evaluate_all(session, step)
    done, harmful = step, did_harm(session, step)
    if session.interventions.stopped_by is not None or harmful:
        step = restore_best(session, step)
    save_student(session)
    summary = summarise(session, step)
    if harmful:
        summary["kept"] = {"step": step, "after": done}
    session.folder.save_summary(summary)
    session.console.close()
    return summary


def did_harm(session: Session, step: int) -> bool:
    """Whether the student that `recipe: auto` ends with is worse than the best one it had."""
    last = mean_accuracy(session, step)
    return last is not None and goes_back(session.interventions, last)


def goes_back(interventions: Interventions, last: float) -> bool:
    """Whether a run whose last student has accuracy `last` ends with the best one it had."""
    best = interventions.best if interventions.keeps_best else None
    return best is not None and last < best[1] - MAX_LOSS


def restore_best(session: Session, step: int) -> int:
    """After an alarm that ended the run, or harm, put the best student so far in place.

    Returns:
        The step it is of.
    """
    session.learner.ranks.barrier()  # one process wrote it
    best = load_student(session.learner, session.folder.path / BEST)
    kept = step if best is None else best
    session.source.sampler.sync(kept)
    evaluate_all(session, kept)
    return kept


def evaluate_all(session: Session, step: int) -> None:
    """Evaluate the student of `step` on the sets on which it was not evaluated yet.

    Those are sets that are not evaluated along the way, and sets that were added or changed when a
    finished run was resumed.
    """
    for task in session.evals:
        evaluate_once(session, task, step, task.label, session.student_sampler(task))


def save_student(session: Session) -> None:
    """Write final/; a sharded student is assembled for it by all processes."""
    student, folder = session.learner.student, session.folder
    if student.sharded is not None:
        student = gather_model(student, keep=folder.writes) or student
    if folder.writes:
        give_back()  # what updates have freed; the final model is put together in host memory
        save_final(student, session.tokenizer, folder.path / FINAL)


def summarise(session: Session, step: int) -> dict[str, Any]:
    """Before, after, teacher and gap recovery of every held-out set, with intervals.

    Args:
        session: of the run.
        step: of the student that is kept.
    """
    summary: dict[str, Any] = {"steps": step, "run": str(session.folder.path), "sets": {}}
    if session.interventions.stopped_by is not None:
        summary["stopped"] = session.interventions.stopped_by.record()
    summary |= session.facts
    for task in session.evals:
        results = {
            "before": load_evaluation(session, task, 0, task.label),
            "after": load_evaluation(session, task, step, task.label),
            "teacher": load_evaluation(session, task, 0, f"teacher-{task.label}"),
        }
        known = {who: result for who, result in results.items() if result is not None}
        entry = recovery(known)
        if by_teacher := recovery_by_teacher(known):
            entry["teachers"] = by_teacher
        if results["before"] is None:
            entry["note"] = NOT_EVALUATED_BEFORE
        summary["sets"][task.label] = entry
    return summary
