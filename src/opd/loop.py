"""The loop: sample, score, update, sync, log - and nothing else.

`Parts` are made by `opd.build`; the loop knows protocols only. A step is all or nothing: its
rollouts and scores are on disk before the update, and a checkpoint appears whole or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from opd.alarms import Watch
from opd.config import Run
from opd.core.align import Batch
from opd.errors import UserError
from opd.evaluate import EvalTask, Evaluation, evaluate, recovery
from opd.experience import Source, rollout_metrics, sample, score
from opd.models.lm import save_final
from opd.models.shard import assembled
from opd.run.clock import Clock
from opd.run.console import Console
from opd.run.folder import RunFolder
from opd.run.records import read_jsonl
from opd.run.tracking import Trackers
from opd.state import checkpoint, last_good, restore
from opd.teachers.server import TeacherDown
from opd.types import Mean, Metrics, Rollout, Sampler, Scores
from opd.update import Learner, Refused, update

logger = logging.getLogger(__name__)


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
    watch: Watch
    stop: Event = field(default_factory=Event)  # set: save after this step and stop
    warm_up: Callable[[Parts], Parts] | None = None  # a phase before the first step
    facts: Mapping[str, Any] = field(default_factory=dict)  # what it adds to the summary


def train(parts: Parts) -> dict[str, Any]:
    """Distil, and return the summary that ends the run (see `finish`).

    Raises:
        UserError: too many refused updates in a row; the last good checkpoint is named.
        KeyboardInterrupt: `parts.stop` was set; this step is saved.
    """
    parts = parts if parts.warm_up is None else parts.warm_up(parts)
    cfg, run, source, clock = parts.cfg, parts.folder, parts.source, parts.clock
    step, refused = restore(run, parts.learner), 0
    parts.learner.ranks.barrier()  # logs are cut to the checkpoint before anybody reads them
    parts.watch.catch_up(read_jsonl(run.path / "metrics.jsonl"))
    run.thin_rollouts(step, cfg.output.rollout_sample)  # a kill may have come between save and this
    source.sampler.sync(step)
    parts.console.start(step, cfg.train.steps)
    evaluate_teacher(parts)
    if step == 0:
        evaluate_due(parts, step)
    while step < cfg.train.steps:
        with clock("rollout"):
            rollouts, saved = sample(source, run, cfg, step)
        with clock("score"):
            batch = scored(parts, step, rollouts, saved)
        with clock("update"):
            try:
                found, refused = update(parts.learner, batch, step), 0
            except Refused as why:
                refused += 1
                found = refuse(parts, step, why, refused)
        step += 1
        source.sampler.sync(step)
        log(parts, step, found | rollout_metrics(batch))
        evaluate_due(parts, step)
        watch(parts, step)
        last = step == cfg.train.steps
        stopping = parts.learner.ranks.agree(parts.stop.is_set())
        if step % cfg.output.save_every == 0 or last or stopping:
            with clock("save"):
                checkpoint(run, parts.learner, step, keep=cfg.output.keep)
                run.thin_rollouts(step, cfg.output.rollout_sample)
        if stopping and not last:
            raise KeyboardInterrupt("saved")
    student = parts.learner.student
    if student.sharded is not None:
        student = assembled(student, keep=run.writes) or student
    if run.writes:
        save_final(student, parts.tokenizer, run.path / "final")
    return finish(parts)


def scored(parts: Parts, step: int, rollouts: list[Rollout], saved: list[Scores] | None) -> Batch:
    """The step's batch; a teacher that stays away stops the run at a checkpoint of this step.

    Raises:
        TeacherDown: after saving; `--resume` goes on with these very rollouts.
    """
    cfg, run, learner = parts.cfg, parts.folder, parts.learner
    try:
        return score(parts.source, run, cfg, learner.objective, step, rollouts, saved)
    except TeacherDown:
        if step % cfg.output.save_every:
            checkpoint(run, learner, step, keep=cfg.output.keep)
        raise


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
    parts.watch.see(values)
    parts.folder.time(step, clocks)
    parts.trackers.log(step, values | clocks)
    parts.console.step(step, values, clocks["time/tokens_per_s"])


def watch(parts: Parts, step: int) -> None:
    """Record and say what the rules find in the metrics so far."""
    for _, alarm in parts.watch.raised(step):
        parts.folder.alarm(alarm.record())
        parts.console.alarm(alarm.record())
        parts.trackers.log(step, {f"alarm/{alarm.name}": 1.0})


def evaluate_due(parts: Parts, step: int) -> None:
    """Run the evaluations due after `step` updates: first, last, and every so often."""
    for task in parts.evals:
        edge = step in (0, parts.cfg.train.steps)
        if edge or (task.every and step % task.every == 0):
            with parts.clock("evaluate"):
                found = evaluated(parts, task, step, task.label, parts.student_sampler(task))
            parts.folder.log(step, found.values())
            parts.watch.see(found.values())
            parts.trackers.log(step, found.values())
            parts.console.evaluated(step, task.label, found.accuracy)


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


def finish(parts: Parts) -> dict[str, Any]:
    """Before, after, teacher and gap recovery of every held-out set, with intervals."""
    last = parts.cfg.train.steps
    summary: dict[str, Any] = {"steps": last, "run": str(parts.folder.path), "sets": {}}
    summary |= parts.facts
    for task in parts.evals:
        key = task.key | {"seed": parts.cfg.train.seed}
        places = {
            "before": (0, task.label),
            "after": (last, task.label),
            "teacher": (0, f"teacher-{task.label}"),
        }
        found = {who: parts.folder.load_eval(*place, key=key) for who, place in places.items()}
        summary["sets"][task.label] = recovery(
            {who: Evaluation.of_record(*saved) for who, saved in found.items() if saved}
        )
    parts.folder.save_summary(summary)
    parts.console.close()
    return summary
