"""Evaluations of a run: when they are due, and where their results are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from opd.training.answer_kl import Measure
from opd.training.eval_task import EvalTask
from opd.training.evaluate import Evaluation, evaluate
from opd.training.session import Session
from opd.types import Sampler


def evaluate_due(session: Session, step: int) -> None:
    """Run the evaluations due after `step` updates: first, last, and every so often."""
    accuracies = []  # of the sets that are evaluated along the way
    for task in session.evals:
        first_or_last = step in (0, session.steps)
        if first_or_last or (task.every and step % task.every == 0):
            with session.clock("evaluate"):
                sampler = session.student_sampler(task)
                evaluation = evaluate_once(
                    session, task, step, task.label, sampler, session.measure_answers
                )
            session.folder.log_metrics(step, evaluation.values())
            session.interventions.monitor.add(evaluation.values())
            session.trackers.log(step, evaluation.values())
            session.console.show_evaluation(step, task.label, evaluation.accuracy)
            accuracies += [evaluation.accuracy.value] if task.every else []
    # Means are compared where every one of these sets was evaluated: sets that are due at other
    # steps are harder or easier. At step 0 of a warm-started run the evaluation is of the student
    # before the cold start.
    due = sum(bool(task.every) for task in session.evals)
    if not accuracies or len(accuracies) < due or (step == 0 and session.warm_started):
        return
    if session.interventions.record_accuracy(step, sum(accuracies) / len(accuracies)):
        session.save_best(step)


def mean_accuracy(session: Session, step: int) -> float | None:
    """Mean accuracy after `step` updates of the sets evaluated along the way; None if unknown."""
    kept = [
        load_evaluation(session, task, step, task.label) for task in session.evals if task.every
    ]
    known = [evaluation.accuracy.value for evaluation in kept if evaluation is not None]
    return sum(known) / len(known) if known and len(known) == len(kept) else None


def evaluate_teacher(session: Session) -> None:
    """Evaluate the teacher, once a run: the top of the gap."""
    if session.teacher_sampler is None:
        return
    for task in session.evals:
        sampler = session.teacher_sampler(task)
        if sampler is None:
            continue
        evaluation = evaluate_once(session, task, 0, f"teacher-{task.label}", sampler)
        session.console.show_evaluation(0, task.label, evaluation.accuracy, who="teacher")


def evaluate_once(
    session: Session,
    task: EvalTask,
    step: int,
    name: str,
    sampler: Sampler,
    measure: Measure | None = None,
) -> Evaluation:
    """One evaluation, kept in eval/ so that a resumed run does not pay for it again."""
    known = load_evaluation(session, task, step, name)
    if known is not None:
        return known
    evaluation = evaluate(
        sampler, task, session.source.decode, seed=session.cfg.train.seed, measure=measure
    )
    key = result_key(session, task)
    session.folder.save_eval(step, name, evaluation.record(), evaluation.graded, key=key)
    # Processes must agree on what is known, and rank zero may still be writing; a network disk may
    # show its file to another machine half a minute later.
    session.evaluations[step, name] = replace(evaluation, graded=[])
    return evaluation


def load_evaluation(session: Session, task: EvalTask, step: int, name: str) -> Evaluation | None:
    """A result that `evaluate_once` kept; None where there is none.

    One of this process has no answers, which are in eval/ alone.
    """
    if (known := session.evaluations.get((step, name))) is not None:
        return known
    saved = session.folder.load_eval(step, name, key=result_key(session, task))
    return None if saved is None else Evaluation.of_record(*saved)


def result_key(session: Session, task: EvalTask) -> dict[str, Any]:
    """What a kept result depends on, besides the model."""
    return task.key | {"seed": session.cfg.train.seed}
