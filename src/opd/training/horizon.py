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
from typing import TYPE_CHECKING

import numpy as np

from opd import config
from opd.types import Mean, Metrics, Rollout, Scores

if TYPE_CHECKING:
    from opd.core.batch import Batch  # torch

MIN_LIMIT = 16  # tokens: the first few of an answer are not worth a rollout, whatever the overlap
# Published default of Prune-OPD: the fiftieth bad position is the last that counts.
WEIGHT_DROP = 0.02
# An adaptive cap is where this fraction of the rollouts has died or ended: a tenth of long ones
# does not hold it up. While rollouts are cut alive it grows by this factor: half as long again
# takes two steps. The published rule could not be found; both are ours.
ENDED_FRACTION, GROWTH = 0.9, 1.25


@dataclass(frozen=True)
class Pruning:
    """How tokens lose weight as the overlap with the teacher dies (Prune-OPD, arXiv 2605.07804).

    Attributes:
        k: top tokens of student and teacher that are compared.
        threshold: a position is bad where a smaller fraction of them is shared.
        drop: what each bad position takes from the weight of itself and all later ones.
        ended_fraction: of rollouts that have no weight left, or have ended, at the next cap.
    """

    k: int
    threshold: float
    drop: float = WEIGHT_DROP
    ended_fraction: float = ENDED_FRACTION


@dataclass(frozen=True)
class Horizon:
    """The limit of the next rollouts.

    Attributes:
        settings: the run's `horizon` section; None if it has none.
        max_new_tokens: rollout.max_new_tokens.
        pruning: what the cap follows; None where it does not follow the overlap.
        min_tokens: no adaptive cap goes below this.
        learned: where the overlap died last time; None before anything was seen.
        alarmed: what an alarm has shortened it to; None if none has.
    """

    settings: config.Horizon | None
    max_new_tokens: int
    pruning: Pruning | None = None
    min_tokens: int = MIN_LIMIT
    learned: int | None = None
    alarmed: int | None = None

    @property
    def min_limit(self) -> int:
        """No adaptive cap goes below this."""
        return min(self.max_new_tokens, self.min_tokens)

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
        if self.pruning is None or batch.pruned is None:
            return self
        wanted = next_cap(batch.rollouts, batch.pruned, limit, self.pruning.ended_fraction)
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


def prune_weights(rollout: Rollout, scores: Scores, pruning: Pruning) -> np.ndarray:
    """clip(1 - drop N_t, 0, 1) with N_t bad positions up to and including t, float32 (T,).

    Prune-OPD (arXiv 2605.07804): a position is bad where student and teacher share too little of
    their top k.

    Raises:
        ValueError: the teacher gave no top tokens.
    """
    if scores.topk_ids is None:
        raise ValueError("pruning needs the teacher's top tokens")
    student_ids, teacher_ids = rollout.topk_ids[:, : pruning.k], scores.topk_ids[:, : pruning.k]
    shared = (student_ids[:, :, None] == teacher_ids[:, None, :]).any(-1)
    bad = np.cumsum(shared.mean(-1) < pruning.threshold)
    weights: np.ndarray = np.clip(1.0 - pruning.drop * bad, 0.0, 1.0).astype(np.float32)
    return weights


def reach(weights: np.ndarray) -> int:
    """Tokens that still weigh something; weights never rise, so these come first."""
    return int((weights > 0).sum())


def next_cap(
    rollouts: Sequence[Rollout], weights: Sequence[np.ndarray], limit: int, ended_fraction: float
) -> int:
    """Where that fraction of the rollouts have died or ended; further if they were cut alive."""
    wanted = []
    for rollout, weight in zip(rollouts, weights, strict=True):
        alive = reach(weight)
        cut_alive = alive == len(rollout) and rollout.finish == "length"
        wanted.append(math.ceil(limit * GROWTH) if cut_alive else max(1, alive))
    return int(np.quantile(wanted, ended_fraction, method="higher"))
