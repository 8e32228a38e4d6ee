"""A cache of rows that are at different lengths, in buffers that stay where they are.

Every row writes at its own position, so a finished row's place can be given to another prompt, and
a decoding step is a function of tensors at fixed addresses, as a CUDA graph needs. What lies beyond
a row's length is masked. A layer with a sliding window of W tokens has W columns at most, and
writes position p at column p % W: attention does not ask for an order. Recurrent states are a
buffer of one place a row.
Shapes: R rows, B prompts of P tokens at most, C columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from opd.models.slab_layers import (
    Access,
    AttentionSlab,
    LayerKind,
    PromptRows,
    Slab,
    StateSlab,
    layer_kinds,
    make_slab,
)

# What models whose layers differ call their masks; the others take one mask for all layers.
FULL, SLIDING = "full_attention", "sliding_attention"


class SlabCache:
    """What at most `rows` rows keep; `cache` is what a model takes.

    Before each forward, `prefill` or `decode` says what it writes and reads.
    """

    def __init__(self, config: Any, rows: int, columns: int, device: torch.device) -> None:
        """Make a cache; a layer's buffers are allocated when it is first written.

        Args:
            config: of the model; its layers must be of the kinds that `layer_kinds` knows.
            rows: maximum rows.
            columns: tokens that a row has room for; see `reserve`.
            device: of the model.
        """
        self.cache: Cache = DynamicCache(config=config)
        self.access = Access(rows, columns, device)
        kinds = layer_kinds(config) or (LayerKind(True),) * len(self.cache.layers)
        self.layers: list[Slab] = [make_slab(self.access, kind) for kind in kinds]
        self.cache.layers = self.layers
        self.windows = [kind.window for kind in kinds if kind.attention]
        self.attention = [x for x in self.layers if isinstance(x, AttentionSlab)]
        self.recurrent = [x for x in self.layers if isinstance(x, StateSlab)]

    @property
    def columns(self) -> int:
        """Tokens that a row has room for."""
        return self.access.columns

    def reserve(self, columns: int) -> None:
        """Make room for `columns` tokens per row; buffers that are too small move."""
        if columns <= self.columns:
            return
        self.access.columns = columns
        for layer in self.attention:
            layer.grow(columns)

    def prefill(self, rows: Tensor, prompts: Tensor, lengths: Tensor) -> None:
        """Have the next forward, over (B, P) prompts, fill rows from column 0 on.

        Args:
            rows: (N,) rows to fill.
            prompts: (N,) which prompt each of them gets.
            lengths: (N,) tokens of that prompt; the rest is padding, which comes before them where
                there are recurrent states (they would go on over what follows).
        """
        self.access.prompts = PromptRows(rows, prompts, lengths, left=bool(self.recurrent))
        self._begin()

    def decode(self, rows: int, columns: int, positions: Tensor) -> None:
        """Have the next forward, over one token per row, write at (rows,) positions.

        Args:
            rows: the first rows of the cache take part.
            columns: the first columns are returned for attention.
            positions: column that each row writes.
        """
        access = self.access
        access.prompts, access.positions = None, positions
        access.count, access.read = rows, columns
        self._begin()

    def masks(self, positions: Tensor, columns: int) -> Tensor | dict[str, Tensor]:
        """What a model takes as `attention_mask` of a decoding step.

        Args:
            positions: (R,) column that each row writes.
            columns: the first columns of layers without a window.

        Returns:
            One mask as of `column_mask`, or one for each kind of layer.
        """
        dtype = self.attention[0].slabs[0].dtype
        window = next((w for w in self.windows if w is not None), columns)
        sliding = column_mask(positions, min(window, columns), dtype)
        if None not in self.windows:
            return sliding
        full = sliding if window >= columns else column_mask(positions, columns, dtype)
        return full if set(self.windows) == {None} else {FULL: full, SLIDING: sliding}

    def move(self, source: Tensor, target: Tensor, columns: int) -> None:
        """Copy the states and first columns of rows `source` to rows `target`."""
        for attention in self.attention:
            attention.move_columns(source, target, columns)
        for recurrent in self.recurrent:
            recurrent.move_states(source, target)

    def release(self) -> None:
        """Free the buffers."""
        for attention in self.attention:
            attention.slabs = ()
        for recurrent in self.recurrent:
            recurrent.release_states()

    def bytes_per_token(self) -> list[int]:
        """Of each layer of attention, once it is allocated."""
        return [layer.bytes_per_token() for layer in self.attention]

    def bytes_of_states(self) -> int:
        """Of a row's recurrent states, once they are allocated."""
        return sum(layer.bytes_of_states() for layer in self.recurrent)

    def _begin(self) -> None:
        for layer in self.recurrent:
            layer.begin()


def column_mask(positions: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (R, 1, 1, C): each row sees the columns up to its position."""
    return additive_mask(torch.arange(columns, device=positions.device) > positions[:, None], dtype)


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (R, 1, 1, C) of what each row does not see, (R, C) bool.

    With four dimensions transformers takes it as it is, and waits for no device to look into it.
    """
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, -torch.inf)[:, None, None]
