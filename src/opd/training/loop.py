"""The loop: sample, score, update, sync, record, evaluate, checkpoint - and nothing else.

A `Session` is made by `opd.setup.session`. A step is all or nothing: its rollouts and scores are on
disk before the update, and a checkpoint appears whole or not at all.
"""

from __future__ import annotations

import logging
from enum import Enum, auto

from opd.core.batch import Batch
from opd.errors import UserError
from opd.run.layout import COLD_START
from opd.teachers.remote import TeacherDown
from opd.training.ahead import ahead_metrics, weigh
from opd.training.checkpoints import describe_newest
from opd.training.evaluations import evaluate_due
from opd.training.experience import rollout_metrics, sample, score
from opd.training.optimizer import NonFiniteStep
from opd.training.session import Session
from opd.training.step import update
from opd.types import Mean, Metrics

logger = logging.getLogger(__name__)

# Non-finite updates in a row that end a run: one may be a freak batch, three are a broken model.
MAX_SKIPPED = 3


class End(Enum):
    """Why the loop came to an end."""

    FINISHED = auto()
    STOPPED_BY_ALARM = auto()
    INTERRUPTED = auto()
    COLD_START_DUE = auto()


def train(session: Session) -> tuple[End, int]:
    """Train from the newest checkpoint until the run ends or something must come in between.

    Returns:
        Why it ended, and after how many updates; everything up to there is saved.

    Raises:
        UserError: too many non-finite steps in a row; the newest checkpoint is named.
        TeacherDown: the teacher stays away; a checkpoint of this step is saved.
    """
    step = session.resume()
    if session.needs_cold_start(step):
        return End.COLD_START_DUE, step
    session.source.sampler.sync(step)
    session.console.start(step, session.steps)
    if step == 0:
        evaluate_due(session, step)
    skipped = 0  # non-finite steps in a row
    while not session.is_over(step):
        batch = collect(session, step)
        metrics, skipped = optimize(session, batch, step, skipped)
        if session.ahead is not None:
            with session.clock("rollout"):
                session.ahead.finish()
        step += 1
        session.source.sampler.sync(step)
        session.log(step, metrics)
        evaluate_due(session, step)
        session.interventions.check(step)
        if (end := checkpoint_due(session, step)) is not None:
            return end, step
    stopped = session.interventions.stopped_by is not None
    return (End.STOPPED_BY_ALARM if stopped else End.FINISHED), step


def collect(session: Session, step: int) -> Batch:
    """Rollouts and scores of a step; a teacher that stays away leaves a checkpoint of it.

    Raises:
        TeacherDown: after saving; `--resume` goes on with these very rollouts.
    """
    source, folder, limit = session.source, session.folder, session.interventions.limit
    objective, now = session.interventions.adjustable.objective, None
    with session.clock("rollout"):
        rollouts, saved = sample(source, folder, step, limit(step))
        if session.ahead is not None:
            rollouts, now = session.ahead.renew(rollouts, limit(step))
            if not session.is_over(step + 1):
                session.ahead.begin(step + 1, limit(step + 1))
    with session.clock("score"):
        try:
            batch = score(source, folder, objective, step, rollouts, saved)
            return batch if now is None else weigh(batch, now, objective)
        except TeacherDown:
            if step % session.cfg.output.save_every:
                session.save_checkpoint(step)
            raise


def optimize(session: Session, batch: Batch, step: int, skipped: int) -> tuple[Metrics, int]:
    """Update the student, or skip a non-finite step; metrics, and how many were skipped in a row.

    Raises:
        UserError: too many non-finite steps in a row.
    """
    limit = session.interventions.limit(step)
    with session.clock("update"):
        try:
            metrics, skipped = update(session.current_learner, batch, step), 0
        except NonFiniteStep as reason:
            skipped += 1
            metrics = skip_step(session, step, reason, skipped)
    horizon = session.interventions.adjustable.horizon
    metrics |= rollout_metrics(batch) | horizon.metrics(batch, limit) | ahead_metrics(batch, step)
    session.interventions.observe(batch, limit)
    return metrics, skipped


def skip_step(session: Session, step: int, reason: NonFiniteStep, skipped: int) -> Metrics:
    """Keep the batch of a non-finite step, and give up after too many in a row.

    Raises:
        UserError: naming the newest checkpoint.
    """
    kept = session.folder.keep_rollouts(step + 1)
    logger.warning("Update %d skipped (%s); its batch is kept in %s.", step + 1, reason, kept)
    if skipped >= MAX_SKIPPED:
        raise UserError(
            f"{skipped} updates in a row were not finite (last: {reason}); the optimizer never saw "
            f"them. Newest checkpoint: {describe_newest(session.folder)}. "
            f"Their batches: {kept.parent}. Lower optim.lr, or look at what is in them."
        )
    return {"train/refused": Mean(1, 1)}


def checkpoint_due(session: Session, step: int) -> End | None:
    """Save where a checkpoint is due; whether the loop must end here, and why."""
    over, interrupted = session.is_over(step), session.stop_requested
    cold_start = session.interventions.cold_start_due
    if step % session.cfg.output.save_every == 0 or over or interrupted or cold_start:
        session.save_checkpoint(step)
    if over:
        return None
    if interrupted:
        return End.INTERRUPTED
    if cold_start:
        session.folder.forget(COLD_START, after=step)
        return End.COLD_START_DUE
    return None
