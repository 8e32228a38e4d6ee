"""The pilot: a few real steps of the run, on a student that is put back afterwards.

Prompts, rollouts, objective, optimizer, rates and horizon are those the run begins with, by the
run's own code, so that speed, noise and direction are seen rather than guessed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from opd.core.batch import Batch
from opd.recipes.check.cost import StepTime, time_call
from opd.training.experience import (
    ExperienceSource,
    make_batch,
    request_scores,
    require_usable,
    sample_step,
)
from opd.training.horizon import Horizon
from opd.training.int8_moments import moment_values
from opd.training.learner import Learner
from opd.training.optimizer import BETAS, NonFiniteStep
from opd.training.step import update
from opd.types import Metrics, Rollout


@dataclass
class Pilot:
    """The run's first steps. Use it inside `opd.training.throwaway.throwaway`.

    Attributes:
        learner: student, a fresh optimizer, the run's objective.
        source: prompts, sampler and teacher of the run.
        horizon: limit of the next rollouts.
        steps: updates tried so far.
        path: sum of their learning rates.
        losses: of each update; a refused one has none.
        grad_norms: likewise, before clipping.
        refused: updates that were not made because they were not finite.
        tokens: completion tokens sampled.
    """

    learner: Learner
    source: ExperienceSource
    horizon: Horizon
    steps: int = 0
    path: float = 0.0
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    refused: int = 0
    tokens: int = 0

    def step(self, rate: float | None = None) -> StepTime:
        """Make the next update.

        Args:
            rate: learning rate of this update; None: what the run would take.

        Returns:
            Its time, by phase.
        """
        step, learner = self.steps, self.learner
        if rate is not None:
            optim = learner.optim.model_copy(update={"lr": rate, "warmup": 0})
            learner = replace(learner, optim=optim)
        limit = self.horizon.limit(step)
        rollouts, sampling = time_call(lambda: sample_step(self.source, step, limit))
        began = time.monotonic()
        batch = self._score(learner, rollouts)
        scoring = time.monotonic() - began
        metrics, updating = time_call(lambda: self._update(learner, batch))
        self.steps += 1
        self.tokens += batch.num_tokens
        self.horizon = self.horizon.after(batch, limit)
        self.source.sampler.sync(self.steps)
        self._note(metrics)
        return StepTime(sampling, scoring, updating, batch.num_tokens, 1.0)

    def _score(self, learner: Learner, rollouts: list[Rollout]) -> Batch:
        objective, step = learner.objective, self.steps
        scores = request_scores(self.source, objective, step, rollouts, None)
        require_usable(rollouts, scores, self.source.teacher)
        return make_batch(self.source, objective, step, rollouts, scores)

    def _update(self, learner: Learner, batch: Batch) -> Metrics | None:
        try:
            return update(learner, batch, self.steps)
        except NonFiniteStep:
            return None

    def _note(self, metrics: Metrics | None) -> None:
        if metrics is None:
            self.refused += 1
            return
        self.losses.append(metrics["train/loss"].value)
        self.grad_norms.append(metrics["train/grad_norm"].value)
        self.path += metrics["train/lr"].value


def gradient_agreement(optimizer: torch.optim.Optimizer) -> float:
    """How much the gradients of the updates so far agree, from Adam's moments: 0 noise, 1 equal.

    The squared norm of their (exponentially weighted) mean over their mean squared norm is 1 if all
    are equal, and the sum of the squared weights if they are independent noise.

    Returns:
        The fraction between the two; NaN before the second update.
    """
    mean_square = square_mean = 0.0
    count = 0
    for state in optimizer.state.values():
        if not state:
            continue
        count = int(state["step"])
        mean = moment_values(state, "exp_avg").double() / (1 - BETAS[0] ** count)
        mean_square += float(mean.square().sum())
        squares = moment_values(state, "exp_avg_sq").double()
        square_mean += float(squares.sum()) / (1 - BETAS[1] ** count)
    if count < 2 or square_mean == 0:
        return float("nan")
    alone = weight_square_sum(count)
    return (mean_square / square_mean - alone) / (1 - alone)


def weight_square_sum(count: int) -> float:
    """Sum of the squared weights of `count` gradients in Adam's first moment."""
    weights: Sequence[float] = [BETAS[0] ** i for i in range(count)]
    return sum(w * w for w in weights) / sum(weights) ** 2
