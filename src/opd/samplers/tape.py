"""Sampled tokens with their statistics, on the device until their row has finished.

One int32 tensor holds everything, floats by their bits: a token is written by one kernel, and rows
go to the host by one copy.
Shapes: R rows, T tokens, K captured top tokens, W int32 words per token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from opd.samplers.sampling import Statistics


class Tape:
    """Tokens by slot and position. The last slot, `unused`, takes what nobody will read."""

    def __init__(
        self, slots: int, limit: int, capture: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Make an empty tape.

        Args:
            slots: rollouts under way at the same time.
            limit: maximum tokens of one.
            capture: K.
            dtype: float32 or float64, of the statistics.
            device: where tokens are sampled.
        """
        self.capture, self.dtype, self.unused = capture, dtype, slots
        words = token_words(capture, dtype)
        self.data = torch.zeros(slots + 1, limit, words, dtype=torch.int32, device=device)

    def write(self, slots: Tensor, positions: Tensor, token: Statistics) -> None:
        """Write one token per row at (R,) slots and positions."""
        words = [
            token.ids[:, None].int(),
            token.logp[:, None].view(torch.int32),
            token.entropy[:, None].view(torch.int32),
            token.topk_ids.int(),
            token.topk_logp.contiguous().view(torch.int32),
        ]
        self.data[slots, positions] = torch.cat(words, 1)

    def read(self, slots: Tensor, length: int) -> Tensor:
        """The first `length` tokens of (R,) slots, (R, length, W), on their way to the host.

        From a GPU the copy is ready once the device has been waited for.
        """
        return self.data[slots, :length].to("cpu", non_blocking=True)

    def unpack(self, words: np.ndarray) -> tuple[np.ndarray, ...]:
        """The fields of `Statistics` of one rollout's words (T, W)."""
        size, capture = self.dtype.itemsize // 4, self.capture
        real = np.dtype(np.float64 if size == 2 else np.float32)
        dtypes = [np.dtype(np.int32), real, real, np.dtype(np.int32), real]
        widths = [1, size, size, capture, capture * size]
        fields: list[np.ndarray] = []
        start = 0
        for dtype, width in zip(dtypes, widths, strict=True):
            # A copy: a view would keep all words of the batch in memory.
            fields.append(words[:, start : start + width].copy().view(dtype))
            start += width
        ids, logp, entropy, topk_ids, topk_logp = fields
        return ids[:, 0], logp[:, 0], entropy[:, 0], topk_ids, topk_logp


def token_words(capture: int, dtype: torch.dtype) -> int:
    """int32 words of one token: two ids or more, and the statistics by their bits."""
    return 1 + capture + (2 + capture) * dtype.itemsize // 4
