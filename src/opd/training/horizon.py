"""How far along a completion the student is taught: caps, weights, and what they spare.

The late part of a long rollout teaches little once the teacher is lost on the student's prefix
(paper section 6.1). A cap means that no token beyond it is written, scored or trained. All this is
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


@dataclass(frozen=True)
class Horizon:
    """The limit of the next rollouts.

    Attributes:
        settings: the run's `horizon` section; None if it has none.
        longest: rollout.max_new_tokens.
        learned: where the overlap died last time; None before anything was seen.
        alarmed: what an alarm has shortened it to; None if none has.
    """

    settings: config.Horizon | None
    longest: int
    learned: int | None = None
    alarmed: int | None = None

    @property
    def least(self) -> int:
        """Below this no adaptive cap goes."""
        return min(self.longest, 16 if self.settings is None else self.settings.least)

    def limit(self, step: int) -> int:
        """Tokens a rollout of the step after `step` updates may have."""
        found: list[int | None] = [self.longest, self.learned, self.alarmed]
        if self.settings is not None:
            found.append(self.settings.cap)
            if self.settings.grow is not None:
                found.append(grown(self.settings.grow, self.longest, step))
        return min(x for x in found if x is not None)

    def after(self, batch: Batch, limit: int) -> Horizon:
        """The horizon once a batch written under `limit` has been seen."""
        prune = None if self.settings is None else self.settings.prune
        if prune is None or not prune.adapt or batch.pruned is None:
            return self
        wanted = next_cap(batch.rollouts, batch.pruned, limit, prune)
        return replace(self, learned=min(self.longest, max(self.least, wanted)))

    def shortened(self, to: int) -> Horizon:
        """The horizon after an alarm."""
        return replace(self, alarmed=max(self.least, to))

    def state(self) -> dict[str, int | None]:
        """What a checkpoint keeps."""
        return {"learned": self.learned, "alarmed": self.alarmed}

    def restored(self, state: Mapping[str, int | None]) -> Horizon:
        """The inverse of `state`."""
        return replace(self, learned=state["learned"], alarmed=state["alarmed"])

    def metrics(self, batch: Batch, limit: int) -> Metrics:
        """What the horizon did to a batch written under `limit`; nothing if it is not limited."""
        if self.settings is None and self.alarmed is None:
            return {}
        rollouts, count = batch.rollouts, len(batch.rollouts)
        cut = sum(r.finish == "length" for r in rollouts) if limit < self.longest else 0
        found = {
            "horizon/limit": Mean(limit, 1),
            "horizon/cut": Mean(cut, count),
            # The end of what was not written is unknown: at most this.
            "horizon/spared_at_most": Mean(cut * (self.longest - limit), 1),
        }
        if batch.pruned is not None:
            total = batch.num_tokens
            found["horizon/weight"] = Mean(float(sum(w.sum() for w in batch.pruned)), total)
            found["horizon/reach"] = Mean(sum(reach(w) for w in batch.pruned), count)
        return found


def grown(grow: config.Grow, longest: int, step: int) -> int:
    """The limit of a horizon that grows in a straight line."""
    share = min(1.0, step / grow.until)
    return math.ceil(grow.start + (longest - grow.start) * share)


def pruned(rollout: Rollout, scores: Scores, prune: config.Prune) -> np.ndarray:
    """clip(1 - drop N_t, 0, 1) with N_t bad positions up to and including t, float32 (T,).

    Prune-OPD (arXiv 2605.07804): a position is bad where student and teacher share too little of
    their top k.

    Raises:
        ValueError: the teacher gave no top tokens.
    """
    if scores.topk_ids is None:
        raise ValueError("pruning needs the teacher's top tokens")
    mine, theirs = rollout.topk_ids[:, : prune.k], scores.topk_ids[:, : prune.k]
    shared = (mine[:, :, None] == theirs[:, None, :]).any(-1)
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
