"""How a loss sees a model: next-token distributions at N positions, asked for what it needs.

A `View` answers three questions of rising cost. A loss renormalised on a support asks only for
`scores`; it never makes anybody build a row of the vocabulary. Shapes: N positions, W candidate
tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class View(Protocol):
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


def logp(view: View, ids: Tensor) -> Tensor:
    """Normalised log-probs (N, W) of `ids` (N, W)."""
    return view.scores(ids) - view.log_z()[:, None]


def _up(x: Tensor) -> Tensor:
    """At least fp32: bf16 log-softmax gives a mean KL of the wrong sign (docs/math.md)."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(eq=False)
class DenseView:
    """A view of logits that are already there, (N, V), at a temperature."""

    logits: Tensor
    temperature: float = 1.0

    @cached_property
    def _scaled(self) -> Tensor:
        return _up(self.logits) / self.temperature if self.temperature != 1 else _up(self.logits)

    @cached_property
    def _log_z(self) -> Tensor:
        return self._scaled.logsumexp(-1)

    def scores(self, ids: Tensor) -> Tensor:
        """See `View.scores`."""
        return self._scaled.gather(-1, ids)

    def log_z(self) -> Tensor:
        """See `View.log_z`."""
        return self._log_z

    def log_probs(self) -> Tensor:
        """See `View.log_probs`."""
        return self._scaled - self._log_z[:, None]


@dataclass(eq=False)
class GivenView:
    """A view of numbers somebody else computed: log-scores on known ids, perhaps normalisers.

    `known` maps a name to (ids (N, W), scores (N, W)); asking for ids that were never scored is a
    bug of ours and raises KeyError.
    """

    known: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    normaliser: Tensor | None = None

    def scores(self, ids: Tensor) -> Tensor:
        """See `View.scores`. `ids` must be made of blocks that were given, in any order."""
        columns, start = [], 0
        while start < ids.shape[1]:
            for block, values in self.known:
                stop = start + block.shape[1]
                if stop <= ids.shape[1] and torch.equal(ids[:, start:stop], block):
                    columns.append(_up(values))
                    start = stop
                    break
            else:
                raise KeyError(f"no scores for the ids in columns {start}..{ids.shape[1] - 1}")
        return torch.cat(columns, 1)

    def log_z(self) -> Tensor:
        """See `View.log_z`."""
        if self.normaliser is None:
            raise KeyError("this teacher gave no normalisers; the loss should not have asked")
        return self.normaliser

    def log_probs(self) -> Tensor:
        """Never available here."""
        raise KeyError("this teacher gave no full distributions; the loss should not have asked")

    def part(self, part: slice) -> GivenView:
        """The same view of some of its positions."""
        known = [(ids[part], values[part]) for ids, values in self.known]
        return GivenView(known, None if self.normaliser is None else self.normaliser[part])
