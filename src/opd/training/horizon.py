"""How far along a completion the student is taught: caps, weights, and what they save.

The late part of a long rollout teaches little once the teacher is lost on the student's prefix
(paper section 6.1). A cap means that no token beyond it is sampled, scored or trained. All this is
a function of the configuration, the step and the rollouts seen so far; the little it remembers is
in every checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opd import config
from opd.core.batch import Batch
from opd.types import Mean, Metrics, Rollout, Scores

MIN_LIMIT = 16  # tokens, where the configuration says nothing else


@dataclass(frozen=True)
class Horizon:
    """The limit of the next rollouts.

    Attributes:
        settings: the run's `horizon` section; None if it has none.
        max_new_tokens: rollout.max_new_tokens.
        learned: where the overlap died last time; None before anything was seen.
        alarmed: what an alarm has shortened it to; None if none has.
    """

    settings: config.Horizon | None
    max_new_tokens: int
    learned: int | None = None
    alarmed: int | None = None

    @property
    def min_limit(self) -> int:
        """No adaptive cap goes below this."""
        least = MIN_LIMIT if self.settings is None else self.settings.least
        return min(self.max_new_tokens, least)

    def limit(self, step: int) -> int:
        """Tokens a rollout of the step after `step` updates may have."""
        limits: list[int | None] = [self.max_new_tokens, self.learned, self.alarmed]
        if self.settings is not None:
            limits.append(self.settings.cap)
            if self.settings.grow is not None:
                limits.append(growing_limit(self.settings.grow, self.max_new_tokens, step))
        return min(limit for limit in limits if limit is not None)

    def after(self, batch: Batch, limit: int) -> Horizon:
        """The horizon after a batch sampled under `limit`."""
        prune = None if self.settings is None else self.settings.prune
        if prune is None or not prune.adapt or batch.pruned is None:
            return self
        wanted = next_cap(batch.rollouts, batch.pruned, limit, prune)
        return replace(self, learned=min(self.max_new_tokens, max(self.min_limit, wanted)))

    def shorten(self, limit: int) -> Horizon:
        """The horizon after an alarm has shortened it."""
        return replace(self, alarmed=max(self.min_limit, limit))

    def state(self) -> dict[str, int | None]:
        """What a checkpoint keeps."""
        return {"learned": self.learned, "alarmed": self.alarmed}

    def restore(self, state: Mapping[str, int | None]) -> Horizon:
        """The inverse of `state`."""
        return replace(self, learned=state["learned"], alarmed=state["alarmed"])

    def metrics(self, batch: Batch, limit: int) -> Metrics:
        """What the horizon did to a batch sampled under `limit`; nothing if it is not limited."""
        if self.settings is None and self.alarmed is None:
            return {}
        rollouts, count = batch.rollouts, len(batch.rollouts)
        cut = sum(r.finish == "length" for r in rollouts) if limit < self.max_new_tokens else 0
        metrics = {
            "horizon/limit": Mean(limit, 1),
            "horizon/cut": Mean(cut, count),
            # The end of what was not sampled is unknown: at most this.
            "horizon/spared_at_most": Mean(cut * (self.max_new_tokens - limit), 1),
        }
        if batch.pruned is not None:
            total = batch.num_tokens
            metrics["horizon/weight"] = Mean(float(sum(w.sum() for w in batch.pruned)), total)
            metrics["horizon/reach"] = Mean(sum(reach(w) for w in batch.pruned), count)
        return metrics


def growing_limit(grow: config.Grow, max_new_tokens: int, step: int) -> int:
    """The limit of a horizon that grows linearly."""
    fraction = min(1.0, step / grow.until)
    return math.ceil(grow.start + (max_new_tokens - grow.start) * fraction)


def prune_weights(rollout: Rollout, scores: Scores, prune: config.Prune) -> np.ndarray:
    """clip(1 - drop N_t, 0, 1) with N_t bad positions up to and including t, float32 (T,).

    Prune-OPD (arXiv 2605.07804): a position is bad where student and teacher share too little of
    their top k.

    Raises:
        ValueError: the teacher gave no top tokens.
    """
    if scores.topk_ids is None:
        raise ValueError("pruning needs the teacher's top tokens")
    student_ids, teacher_ids = rollout.topk_ids[:, : prune.k], scores.topk_ids[:, : prune.k]
    shared = (student_ids[:, :, None] == teacher_ids[:, None, :]).any(-1)
    if prune.measure == "ratio":
        overlap = shared.mean(-1)
    else:
        overlap = (np.exp(rollout.topk_logp[:, : prune.k].astype(np.float64)) * shared).sum(-1)
    bad = np.cumsum(overlap < prune.threshold)
    weights: np.ndarray = np.clip(1.0 - prune.drop * bad, 0.0, 1.0).astype(np.float32)
    return weights


def reach(weights: np.ndarray) -> int:
    """Tokens that still weigh something; weights never rise, so these come first."""
    return int((weights > 0).sum())


def next_cap(
    rollouts: Sequence[Rollout], weights: Sequence[np.ndarray], limit: int, prune: config.Prune
) -> int:
    """Where `quantile` of the rollouts have died or ended; further if they were cut alive."""
    wanted = []
    for rollout, weight in zip(rollouts, weights, strict=True):
        alive = reach(weight)
        cut_alive = alive == len(rollout) and rollout.finish == "length"
        wanted.append(math.ceil(limit * prune.growth) if cut_alive else max(1, alive))
    return int(np.quantile(wanted, prune.quantile, method="higher"))
