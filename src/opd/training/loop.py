"""The loop: sample, score, update, sync, log - and nothing else.

`Parts` are made by `opd.setup.session`; the loop knows protocols only. A step is all or nothing:
its rollouts and scores are on disk before the update, and a checkpoint appears whole or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

from opd.config import Run
from opd.core.batch import Batch
from opd.errors import UserError
from opd.models.fsdp import gather_model
from opd.models.lm import save_final
from opd.run import checkpoint as store
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.folder import RunFolder
from opd.run.jsonl import read_jsonl
from opd.run.layout import COLD_START
from opd.run.trackers import Trackers
from opd.teachers.remote import TeacherDown
from opd.training.evaluate import EvalTask, Evaluation, evaluate, recovery
from opd.training.experience import Source, rollout_metrics, sample, score
from opd.training.guard import BEST, Guard
from opd.training.resume import checkpoint, last_good, load_student, restore_phase
from opd.training.step import Learner, Refused, update
from opd.types import Mean, Metrics, Rollout, Sampler, Scores

logger = logging.getLogger(__name__)
NO_BEFORE = "no evaluation before training: the set was added or changed when the run was resumed"


@dataclass(frozen=True)
class Parts:
    """What a run is made of."""

    cfg: Run
    folder: RunFolder
    source: Source
    learner: Learner
    tokenizer: Any
    evals: Sequence[EvalTask]
    student_sampler: Callable[[EvalTask], Sampler]
    teacher_sampler: Callable[[EvalTask], Sampler] | None
    console: Console
    trackers: Trackers
    clock: Clock
    guard: Guard
    stop: Event = field(default_factory=Event)  # set: save after this step and stop
    warm_up: Callable[[Parts], Parts] | None = None  # a phase before the first step
    interlude: Callable[[Parts, int], Parts] | None = None  # one that an alarm may begin
    facts: Mapping[str, Any] = field(default_factory=dict)  # what it adds to the summary

    @property
    def current(self) -> Learner:
        """The learner with the objective of the moment, which an alarm may have changed."""
        return replace(self.learner, objective=self.guard.course.objective)


def train(parts: Parts) -> dict[str, Any]:
    """Distil, and return the summary that ends the run (see `finish`).

    Raises:
        UserError: too many refused updates in a row; the last good checkpoint is named.
        KeyboardInterrupt: `parts.stop` was set; this step is saved.
    """
    parts = parts if parts.warm_up is None else parts.warm_up(parts)
    cfg, run, source, guard = parts.cfg, parts.folder, parts.source, parts.guard
    step, state = restored(parts)
    refused, clock = 0, parts.clock
    parts.learner.ranks.barrier()  # logs are cut to the checkpoint before anybody reads them
    guard.catch_up(state.get("facts", {}), read_jsonl(run.path / "metrics.jsonl"))
    run.thin_rollouts(step, cfg.output.rollout_sample)  # a kill may have come between save and this
    parts = rescued(parts, step)
    source = parts.source
    source.sampler.sync(step)
    parts.console.start(step, cfg.train.steps)
    evaluate_teacher(parts)
    if step == 0:
        evaluate_due(parts, step)
    while step < cfg.train.steps and guard.stopped is None:
        learner, limit = parts.current, guard.course.horizon.limit(step)
        with clock("rollout"):
            rollouts, saved = sample(source, run, cfg, step, limit)
        with clock("score"):
            batch = scored(parts, step, rollouts, saved)
        with clock("update"):
            try:
                found, refused = update(learner, batch, step), 0
            except Refused as why:
                refused += 1
                found = refuse(parts, step, why, refused)
        step += 1
        source.sampler.sync(step)
        found |= rollout_metrics(batch) | guard.course.horizon.metrics(batch, limit)
        log(parts, step, found)
        guard.learn(batch, limit)
        evaluate_due(parts, step)
        guard.check(step)
        last = step == cfg.train.steps or guard.stopped is not None
        stopping = parts.learner.ranks.agree(parts.stop.is_set())
        due = guard.course.cold_start == "due"
        if step % cfg.output.save_every == 0 or last or stopping or due:
            with clock("save"):
                save(parts, step)
                run.thin_rollouts(step, cfg.output.rollout_sample)
        if stopping and not last:
            raise KeyboardInterrupt("saved")
        if due and not last:
            run.forget(COLD_START, after=step)
            parts = rescued(parts, step)
            source = parts.source
            source.sampler.sync(step)
    kept = step if guard.stopped is None else keep_best(parts, step)
    student = parts.learner.student
    if student.sharded is not None:
        student = gather_model(student, keep=run.writes) or student
    if run.writes:
        save_final(student, parts.tokenizer, run.path / "final")
    return finish(parts, kept)


def restored(parts: Parts) -> tuple[int, dict[str, Any]]:
    """Where the newest checkpoint was, its state, and the logs cut to it.

    If a cold start was under way, its own checkpoint is newer and will cut them.
    """
    run = parts.folder
    step, state = restore_phase(run, parts.learner, run.checkpoints, cut=False)
    due = state.get("facts", {}).get("course", {}).get("cold_start") == "due"
    if not due or store.newest(run.path / COLD_START / "checkpoints") is None:
        run.truncate_to(state.get("logs", {}))
    return step, state


def rescued(parts: Parts, step: int) -> Parts:
    """The parts after the cold start that an alarm has begun, made now or in an earlier process.

    A run that is over, by its steps or by another alarm, has no use for one.
    """
    over = step >= parts.cfg.train.steps or parts.guard.stopped is not None
    wanted = ("made",) if over else ("due", "made")
    if parts.interlude is None or parts.guard.course.cold_start not in wanted:
        return parts
    return parts.interlude(parts, step)


def scored(parts: Parts, step: int, rollouts: list[Rollout], saved: list[Scores] | None) -> Batch:
    """The step's batch; a teacher that stays away stops the run at a checkpoint of this step.

    Raises:
        TeacherDown: after saving; `--resume` goes on with these very rollouts.
    """
    cfg, objective = parts.cfg, parts.guard.course.objective
    try:
        return score(parts.source, parts.folder, cfg, objective, step, rollouts, saved)
    except TeacherDown:
        if step % cfg.output.save_every:
            save(parts, step)
        raise


def save(parts: Parts, step: int, *, best: bool = False) -> None:
    """A checkpoint of this step; the best student's has a folder of its own."""
    place = {"folder": parts.folder.path / BEST} if best else {}
    keep = 1 if best else parts.cfg.output.keep
    checkpoint(parts.folder, parts.learner, step, keep=keep, facts=parts.guard.facts(), **place)


def keep_best(parts: Parts, step: int) -> int:
    """After an alarm that ends the run: the best student so far takes the last one's place.

    Returns:
        The step it is of.
    """
    parts.learner.ranks.barrier()  # one process wrote it
    found = load_student(parts.learner, parts.folder.path / BEST)
    kept = step if found is None else found
    for task in parts.evals:  # those that are not evaluated along the way
        evaluated(parts, task, kept, task.label, parts.student_sampler(task))
    return kept


def refuse(parts: Parts, step: int, why: Refused, refused: int) -> Metrics:
    """Keep the batch of a refused update, say so, and give up after too many in a row.

    Raises:
        UserError: naming the last good checkpoint.
    """
    kept = parts.folder.keep_rollouts(step + 1)
    logger.warning("Update %d refused (%s); its batch is kept in %s.", step + 1, why, kept)
    if refused >= parts.cfg.optim.max_bad_steps:
        raise UserError(
            f"{refused} updates in a row were not finite (last: {why}); the optimizer never saw "
            f"them. Last good checkpoint: {last_good(parts.folder)}. "
            f"Their batches: {kept.parent}. Lower optim.lr, or look at what is in them."
        )
    return {"train/refused": Mean(1, 1)}


def log(parts: Parts, step: int, found: Metrics) -> None:
    """One line to metrics.jsonl, one to timings.jsonl, one to people and trackers."""
    values = {name: mean.value for name, mean in found.items()}
    clocks = parts.clock.take(found["rollout/length"].total)
    parts.folder.log(step, values)
    parts.guard.monitor.add(values)
    parts.folder.time(step, clocks)
    parts.trackers.log(step, values | clocks)
    parts.console.step(step, values, clocks["time/tokens_per_s"])


def evaluate_due(parts: Parts, step: int) -> None:
    """Run the evaluations due after `step` updates: first, last, and every so often."""
    regular = []  # accuracies of the sets that are evaluated along the way
    for task in parts.evals:
        edge = step in (0, parts.cfg.train.steps)
        if edge or (task.every and step % task.every == 0):
            with parts.clock("evaluate"):
                found = evaluated(parts, task, step, task.label, parts.student_sampler(task))
            parts.folder.log(step, found.values())
            parts.guard.monitor.add(found.values())
            parts.trackers.log(step, found.values())
            parts.console.evaluated(step, task.label, found.accuracy)
            regular += [found.accuracy.value] if task.every else []
    warmed = step == 0 and parts.warm_up is not None  # evaluated as it came, trained since
    if regular and not warmed and parts.guard.better(step, sum(regular) / len(regular)):
        save(parts, step, best=True)


def evaluate_teacher(parts: Parts) -> None:
    """The teacher's own accuracy, once a run: the top of the gap."""
    for task in parts.evals if parts.teacher_sampler is not None else ():
        assert parts.teacher_sampler is not None
        sampler = parts.teacher_sampler(task)
        found = evaluated(parts, task, 0, f"teacher-{task.label}", sampler)
        parts.console.evaluated(0, task.label, found.accuracy, who="teacher")


def evaluated(parts: Parts, task: EvalTask, step: int, name: str, sampler: Sampler) -> Evaluation:
    """One evaluation, kept in eval/ so that a resumed run does not pay for it again."""
    key = task.key | {"seed": parts.cfg.train.seed}
    saved = parts.folder.load_eval(step, name, key=key)
    if saved is not None:
        return Evaluation.of_record(saved[0], saved[1])
    found = evaluate(sampler, task, parts.source.decode, seed=parts.cfg.train.seed)
    parts.folder.save_eval(step, name, found.record(), found.graded, key=key)
    return found


def finish(parts: Parts, last: int) -> dict[str, Any]:
    """Before, after, teacher and gap recovery of every held-out set, with intervals.

    Args:
        parts: of the run.
        last: step of the student that is kept.
    """
    summary: dict[str, Any] = {"steps": last, "run": str(parts.folder.path), "sets": {}}
    if parts.guard.stopped is not None:
        summary["stopped"] = parts.guard.stopped.record()
    summary |= parts.facts
    for task in parts.evals:
        key = task.key | {"seed": parts.cfg.train.seed}
        places = {
            "before": (0, task.label),
            "after": (last, task.label),
            "teacher": (0, f"teacher-{task.label}"),
        }
        found = {who: parts.folder.load_eval(*place, key=key) for who, place in places.items()}
        entry = recovery({w: Evaluation.of_record(*saved) for w, saved in found.items() if saved})
        if found["before"] is None:
            entry["note"] = NO_BEFORE
        summary["sets"][task.label] = entry
    parts.folder.save_summary(summary)
    parts.console.close()
    return summary
