"""Samplers that end every completion at its recorded length.

The end token is impossible before that length and certain at it; otherwise tokens are still sampled
from the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class EndAt:
    """A logits processor for `generate`, rows in the order of `wanted`."""

    def __init__(self, wanted: Sequence[int], width: int, end: int) -> None:
        self.wanted, self.width, self.end = torch.tensor(wanted), width, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        due = self.wanted == input_ids.shape[1] - self.width + 1
        scores[:, self.end] = torch.where(due, 1e4, -torch.inf)
        return scores


try:
    from opd.samplers.hf import HFSampler
except ImportError:  # TRL's environment has no opd
    HFSampler = object  # type: ignore[assignment,misc]


class ReplayingSampler(HFSampler):
    """Our sampler with recorded lengths, in order of prompts and their n responses."""

    def __init__(self, *args: Any, wanted: Sequence[int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.wanted = wanted

    def _decode(self, prompts: Any, first: Any, n: int, *rest: Any) -> Any:
        self.due = torch.tensor([self.wanted[p.index * n + j] for p in prompts for j in range(n)])
        self.rows = torch.arange(len(self.due))
        return super()._decode(prompts, first, n, *rest)

    def _sample_tokens(self, logits, uniforms, recorder, rows, alive, t):  # type: ignore[no-untyped-def]
        if len(alive) < len(self.rows):  # finished rows have left the batch
            self.rows = self.rows[self.due[self.rows] > t]
        due = self.due[self.rows] == t + 1
        for end in self.stop.tolist():
            logits[:, end] = -torch.inf
        logits[:, self.stop[0]] = torch.where(due, 1e4, -torch.inf).to(logits.dtype)
        return super()._sample_tokens(logits, uniforms, recorder, rows, alive, t)
