"""Next-token distributions at N positions, as a loss sees a model: it asks for what it needs.

A `Distribution` answers three questions of rising cost. A loss renormalised on a support asks only
for `scores`, so no row of the whole vocabulary is computed.
Shapes: N positions, W candidate tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from opd.core.precision import at_least_float32


class Distribution(Protocol):
    """One model's next-token distributions at N positions."""

    def scores(self, ids: Tensor) -> Tensor:
        """Log-scores (N, W) of `ids` (N, W): log-probs up to one constant per position."""
        ...

    def log_z(self) -> Tensor:
        """Log-normalisers (N,): log-scores minus these are log-probs."""
        ...

    def log_probs(self) -> Tensor:
        """The whole log-distribution (N, V)."""
        ...


def logp(distribution: Distribution, ids: Tensor) -> Tensor:
    """Normalised log-probs (N, W) of `ids` (N, W)."""
    return distribution.scores(ids) - distribution.log_z()[:, None]


@dataclass(eq=False)
class DenseDistribution:
    """The distribution of given logits (N, V) at a temperature."""

    logits: Tensor
    temperature: float = 1.0

    @cached_property
    def _scaled(self) -> Tensor:
        logits = at_least_float32(self.logits)
        return logits / self.temperature if self.temperature != 1 else logits

    @cached_property
    def _log_z(self) -> Tensor:
        return self._scaled.logsumexp(-1)

    def scores(self, ids: Tensor) -> Tensor:
        """See `Distribution.scores`."""
        return self._scaled.gather(-1, ids)

    def log_z(self) -> Tensor:
        """See `Distribution.log_z`."""
        return self._log_z

    def log_probs(self) -> Tensor:
        """See `Distribution.log_probs`."""
        return self._scaled - self._log_z[:, None]


@dataclass(eq=False)
class KnownScores:
    """A distribution of which only the scores a teacher returned are known.

    `known` lists (ids (N, W), log-scores (N, W)). Asking for ids that were never scored is a
    programming error and raises KeyError.
    """

    known: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    normaliser: Tensor | None = None

    def scores(self, ids: Tensor) -> Tensor:
        """See `Distribution.scores`. `ids` must consist of known blocks, in any order."""
        columns, start = [], 0
        while start < ids.shape[1]:
            for block, values in self.known:
                stop = start + block.shape[1]
                if stop <= ids.shape[1] and torch.equal(ids[:, start:stop], block):
                    columns.append(at_least_float32(values))
                    start = stop
                    break
            else:
                raise KeyError(f"no scores for the ids in columns {start}..{ids.shape[1] - 1}")
        return torch.cat(columns, 1)

    def log_z(self) -> Tensor:
        """See `Distribution.log_z`."""
        if self.normaliser is None:
            raise KeyError("this teacher gave no normalisers; the loss should not have asked")
        return self.normaliser

    def log_probs(self) -> Tensor:
        """Never available here."""
        raise KeyError("this teacher gave no full distributions; the loss should not have asked")

    def select(self, rows: slice) -> KnownScores:
        """The same scores at some of the positions."""
        known = [(ids[rows], values[rows]) for ids, values in self.known]
        return KnownScores(known, None if self.normaliser is None else self.normaliser[rows])
