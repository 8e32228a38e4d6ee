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

    def sample(self, prompts: Any, *, n: int, **kwargs: Any) -> Any:
        due = torch.tensor([self.wanted[p.index * n + j] for p in prompts for j in range(n)])
        stop = sorted(self.stop)

        def end_when_due(logits, requests, sampled):  # type: ignore[no-untyped-def]
            logits[:, stop] = -torch.inf
            last = due[requests] == sampled + 1
            logits[:, stop[0]] = torch.where(last, 1e4, -torch.inf).to(logits.dtype)
            return logits

        self.logits_hook = end_when_due
        return super().sample(prompts, n=n, **kwargs)
