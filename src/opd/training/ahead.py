"""One step ahead: the next rollouts are sampled by the weights of now, while these are learnt.

A rollout server does so in the background. A model in this process does it before the update, which
gains no time and is the same computation. What is under way is written to the run folder without
scores before the step ends, and read back from there: a resumed run goes on with these very
rollouts. Shapes: T completion tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread

import numpy as np

from opd.core.batch import Batch
from opd.core.importance import importance_metrics, importance_weights, prefix_log_ratios
from opd.core.objective import Objective
from opd.models.fsdp import unsharded
from opd.run.folder import RunFolder
from opd.samplers.completions import ServerLost
from opd.samplers.replay import truncate_rollout
from opd.samplers.vllm import VllmSampler, with_statistics
from opd.teachers.local import LocalTeacher
from opd.training.experience import ExperienceSource, sample_step
from opd.types import Mean, Metrics, Rollout, Sampler, Scores, Want

logger = logging.getLogger(__name__)


class LookAhead:
    """Samples the next step's rollouts, and looks anew at those of an earlier student."""

    def __init__(
        self,
        source: ExperienceSource,
        folder: RunFolder,
        sampler: Sampler,
        scorer: LocalTeacher,
        k: int,
    ) -> None:
        """Nothing is under way yet.

        Args:
            source: of prompts; its sampler is not used.
            folder: where rollouts are written.
            sampler: of the student; one of a server works in the background.
            scorer: the student of now, at the sampling temperature.
            k: K, top tokens to record per position.
        """
        self.source, self.folder = replace(source, sampler=sampler), folder
        self.scorer, self.k = scorer, k
        self._under_way: tuple[int, Future[list[Rollout]]] | None = None

    def begin(self, step: int, limit: int) -> None:
        """Sample the rollouts of the step after `step` updates, of at most `limit` tokens.

        A step whose rollouts are on disk is left alone.
        """
        if self.folder.load_rollouts(step + 1, self.folder.rollout_key(step + 1, step)) is not None:
            return
        sampler = self.source.sampler
        if not isinstance(sampler, VllmSampler):
            self._save(step, sample_step(self.source, step, limit))
            return
        source = replace(self.source, sampler=sampler.once())
        future: Future[list[Rollout]] = Future()

        def work() -> None:
            try:
                future.set_result(sample_step(source, step, limit))
            except BaseException as error:  # noqa: BLE001 - raised by `finish`
                future.set_exception(error)

        # Not a pool: its threads would be waited for when the process ends.
        Thread(target=work, name="ahead", daemon=True).start()
        self._under_way = step, future

    def finish(self) -> None:
        """Wait for what is under way, and write it to the run folder.

        A server that went away is left to the next sync of weights; the step then samples anew.

        Raises:
            UserError: the server refuses, or answers wrongly.
        """
        task, self._under_way = self._under_way, None
        if task is None:
            return
        step, future = task
        try:
            self._save(step, future.result())
        except ServerLost as lost:
            logger.warning(
                "The rollouts of step %d are sampled after the update before it: %s.",
                step + 1,
                lost,
            )

    def _save(self, step: int, rollouts: list[Rollout]) -> None:
        none, key = [Scores()] * len(rollouts), self.folder.rollout_key(step + 1, step)
        self.folder.save_rollouts(step + 1, rollouts, none, key=key)

    def renew(
        self, rollouts: Sequence[Rollout], limit: int
    ) -> tuple[list[Rollout], list[np.ndarray]]:
        """Rollouts with the top tokens and entropies that the student of now has at each position.

        Args:
            rollouts: from an earlier student; longer ones are cut, as if the rest had never been.
            limit: tokens that a rollout may have now.

        Returns:
            The rollouts, and the student's log-probs (T,) of the tokens of each.
        """
        rollouts = [truncate_rollout(r, limit) for r in rollouts]
        with unsharded(self.scorer.lm):
            scores = self.scorer.score(rollouts, Want(sampled=True, topk=self.k))
        now = [s.sampled for s in scores if s.sampled is not None]
        return [with_statistics(r, s) for r, s in zip(rollouts, scores, strict=True)], now


def weigh(batch: Batch, now: Sequence[np.ndarray], objective: Objective) -> Batch:
    """The batch with every token's loss weighted for a student that is another by now.

    Args:
        batch: of rollouts with the log-probs of the student that sampled them.
        now: (T,) per rollout, the log-probs of the student that is trained.
        objective: decides whether a token itself counts, or only what was written before it.
    """
    pairs = zip(now, batch.rollouts, strict=True)
    own_token = objective.support == "sampled"
    ratios = [prefix_log_ratios(n, r.logp, own_token=own_token) for n, r in pairs]
    weights = [importance_weights(x) for x in ratios]
    if batch.weights is not None:
        weights = [w * other for w, other in zip(weights, batch.weights, strict=True)]
    return replace(batch, weights=weights, log_ratios=ratios)


def ahead_metrics(batch: Batch, step: int) -> Metrics:
    """How old a weighted batch was at a step, and what its weights were; {} for other batches."""
    if batch.log_ratios is None:
        return {}
    age = sum(step - r.version for r in batch.rollouts)
    return importance_metrics(batch.log_ratios) | {"ahead/steps": Mean(age, len(batch.rollouts))}
