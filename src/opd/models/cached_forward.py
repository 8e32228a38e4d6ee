"""Forwards of a model with a cache: over prompts, and over one token a row.

Shapes: B prompts of P tokens at most, R rows, N rows to fill, S tokens so far, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opd.core.batch import pad_rows
from opd.models.lm import LM
from opd.models.slab_cache import SlabCache, additive_mask


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; the host does not wait for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def left_pad(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, P) of prompts that end together."""
    width = max(map(len, prompts))
    ids = np.zeros((2, len(prompts), width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[0, row, width - len(prompt) :] = prompt
        ids[1, row, width - len(prompt) :] = 1
    both = to_device(ids, device)
    return both[0], both[1]


def aligned_forward(
    lm: LM, cache: Any, ids: Tensor, mask: Tensor, *, ready: bool = False
) -> Tensor:
    """Hidden states (B, L, H) of the last L tokens of left-padded rows.

    Args:
        lm: the model.
        cache: of all tokens before.
        ids: (B, L).
        mask: (B, S) of all tokens, 0 where padding is.
        ready: give the model of a single token a mask of four dimensions, which transformers takes
            as it is. It waits for the device to look into one of two, token by token.
    """
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if ready and ids.shape[1] == 1:
        mask = additive_mask(mask == 0, lm.working_dtype)
    return lm.hidden(
        ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )


def read_prompts(
    lm: LM,
    slabs: SlabCache,
    prompts: Sequence[Sequence[int]],
    filled: tuple[Tensor, Tensor],
    lengths: Tensor,
) -> Tensor:
    """Read each prompt once for all its rows.

    Args:
        lm: the model.
        slabs: whose rows are filled.
        prompts: ids of B prompts.
        filled: (N,) rows, and (N,) which prompt each of them gets.
        lengths: (N,) tokens of that prompt.

    Returns:
        (N, H): hidden state of the last token of each row's prompt.
    """
    rows, of_prompt = filled
    slabs.prefill(rows, of_prompt, lengths)
    # A mask is looked into by the host: there is none where no prompt is padded.
    if slabs.recurrent and len(set(map(len, prompts))) > 1:
        ids, mask = left_pad(prompts, lm.device)
        return aligned_forward(lm, slabs.cache, ids, mask)[of_prompt, -1]
    ids = to_device(pad_rows(prompts).numpy(), lm.device)
    hidden = lm.hidden(ids, past_key_values=slabs.cache, use_cache=True)
    return hidden[of_prompt, lengths - 1]


def decode_step(
    lm: LM, slabs: SlabCache, tokens: Tensor, positions: Tensor, columns: int
) -> Tensor:
    """Feed one token to each of the first rows.

    Args:
        lm: the model.
        slabs: its cache.
        tokens: (R,).
        positions: (R,) in the sequence, which are their columns too.
        columns: so many are attended to, more than any position.

    Returns:
        (R, H).
    """
    slabs.decode(len(tokens), columns, positions)
    hidden = lm.hidden(
        tokens[:, None],
        attention_mask=slabs.masks(positions, columns),
        position_ids=positions[:, None],
        past_key_values=slabs.cache,
        use_cache=True,
    )
    return hidden[:, -1]
