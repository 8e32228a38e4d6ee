"""A key-value cache of rows that are at different lengths, in buffers that stay where they are.

Every row writes at its own position, so no row is padded on the left, a finished row's place can be
given to another prompt, and a decoding step is a function of tensors at fixed addresses, as a CUDA
graph needs. What lies beyond a row's length is masked. A layer with a sliding window of W tokens
has W columns at most, and writes position p at column p % W: attention does not ask for an order.
Shapes: R rows, B prompts of P tokens at most, J key-value heads, C columns, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

# What models whose layers differ call their masks; the others take one mask for all layers.
FULL, SLIDING = "full_attention", "sliding_attention"


class SlabCache:
    """Keys and values of at most `rows` rows; `cache` is what a model takes.

    Before each forward, `prefill` or `decode` says what it writes and reads.
    """

    def __init__(self, config: Any, rows: int, columns: int, device: torch.device) -> None:
        """Make a cache; a layer's buffers are allocated when it is first written.

        Args:
            config: of the model; its layers must be attention (`layer_windows`).
            rows: maximum rows.
            columns: tokens that a row has room for; see `reserve`.
            device: of the model.
        """
        self.rows, self.columns = rows, columns
        self.cache: Cache = DynamicCache(config=config)
        self.windows = layer_windows(config) or (None,) * len(self.cache.layers)
        self.layers = [_SlabLayer(self, window) for window in self.windows]
        self.cache.layers = self.layers
        self._all_rows = torch.arange(rows, device=device)
        self._filled: tuple[Tensor, Tensor, Tensor] | None = None
        self._reads = (0, 0)
        self._positions = self._all_rows

    def reserve(self, columns: int) -> None:
        """Make room for `columns` tokens per row; buffers that are too small move."""
        if columns <= self.columns:
            return
        self.columns = columns
        for layer in self.layers:
            layer.grow(columns)

    def prefill(self, rows: Tensor, prompts: Tensor, lengths: Tensor) -> None:
        """Have the next forward, over (B, P) prompts, fill rows from column 0 on.

        Args:
            rows: (N,) rows to fill.
            prompts: (N,) which prompt each of them gets.
            lengths: (N,) tokens of that prompt; what follows them is padding.
        """
        self._filled = (rows, prompts, lengths)

    def decode(self, rows: int, columns: int, positions: Tensor) -> None:
        """Have the next forward, over one token per row, write at (rows,) positions.

        Args:
            rows: the first rows of the cache take part.
            columns: the first columns are returned for attention.
            positions: column that each row writes.
        """
        self._filled, self._reads, self._positions = None, (rows, columns), positions

    def masks(
        self, positions: Tensor, columns: int, dtype: torch.dtype
    ) -> Tensor | dict[str, Tensor]:
        """What a model takes as `attention_mask` of a decoding step.

        Args:
            positions: (R,) column that each row writes.
            columns: the first columns of layers without a window.
            dtype: of the mask.

        Returns:
            One mask as of `column_mask`, or one for each kind of layer.
        """
        window = next((w for w in self.windows if w is not None), columns)
        sliding = column_mask(positions, min(window, columns), dtype)
        if None not in self.windows:
            return sliding
        full = sliding if window >= columns else column_mask(positions, columns, dtype)
        return full if set(self.windows) == {None} else {FULL: full, SLIDING: sliding}

    def move(self, source: Tensor, target: Tensor, columns: int) -> None:
        """Copy the first columns of rows `source` to rows `target`."""
        for layer in self.layers:
            for slab in layer.slabs:
                slab[target, :, :columns] = slab[source, :, :columns]

    def release(self) -> None:
        """Free the buffers."""
        for layer in self.layers:
            layer.slabs = ()

    def bytes_per_token(self) -> list[int]:
        """Of each layer, once it is allocated."""
        return [
            sum(x.shape[1] * x.shape[3] * x.element_size() for x in layer.slabs)
            for layer in self.layers
        ]

    def store(self, layer: _SlabLayer, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a forward's keys and values (B, J, P, D) and return those to attend to."""
        if not layer.slabs:
            size = layer.size(self.columns)
            layer.slabs = tuple(
                x.new_zeros(self.rows, x.shape[1], size, x.shape[3]) for x in (keys, values)
            )
        if self._filled is not None:
            rows, prompts, lengths = self._filled
            for slab, new in zip(layer.slabs, (keys, values), strict=True):
                if new.shape[2] <= slab.shape[2]:
                    slab[rows, :, : new.shape[2]] = new[prompts]
                else:
                    last = _last_tokens(lengths, slab.shape[2])
                    slab[rows] = new[prompts[:, None], :, last].transpose(1, 2)
            return keys, values  # prompts attend to themselves alone
        count, columns = self._reads
        positions = self._positions
        if layer.window is not None:
            positions = positions % layer.window
        for slab, new in zip(layer.slabs, (keys, values), strict=True):
            slab[self._all_rows[:count], :, positions] = new[:, :, 0]
        keys, values = (slab[:count, :, :columns] for slab in layer.slabs)
        return keys, values

    def seen(self) -> int:
        """Tokens before those of the next forward, where a model asks."""
        return 0 if self._filled is not None else self._reads[1] - 1


class _SlabLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of a `SlabCache` as transformers knows it."""

    def __init__(self, owner: SlabCache, window: int | None) -> None:
        super().__init__()
        self.owner, self.window = owner, window
        self.slabs: tuple[Tensor, ...] = ()
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `SlabCache.store`."""
        return self.owner.store(self, key_states, value_states)

    def get_seq_length(self) -> int:
        """See `SlabCache.seen`."""
        return self.owner.seen()

    def size(self, columns: int) -> int:
        """Columns of its buffers where a row has room for so many tokens."""
        return columns if self.window is None else min(columns, self.window)

    def grow(self, columns: int) -> None:
        """Move to buffers with more columns, one after another."""
        columns, slabs = self.size(columns), list(self.slabs)
        if slabs and slabs[0].shape[2] == columns:
            return  # a window that is full
        self.slabs = ()
        for i, old in enumerate(slabs):
            slabs[i] = old.new_zeros(*old.shape[:2], columns, old.shape[3])
            slabs[i][:, :, : old.shape[2]] = old
        self.slabs = tuple(slabs)


def layer_windows(config: Any) -> tuple[int | None, ...] | None:
    """How many tokens each layer sees, None: all.

    Args:
        config: of a model.

    Returns:
        None where a layer is of another kind (recurrent states, chunks), or windows differ.
    """
    window = getattr(config.get_text_config(decoder=True), "sliding_window", None)
    windows: list[int | None] = []
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicLayer:
            windows.append(None)
        elif type(layer) is DynamicSlidingWindowLayer and layer.sliding_window == window:
            windows.append(window)
        else:
            return None
    return tuple(windows) or None


def _last_tokens(lengths: Tensor, window: int) -> Tensor:
    """(N, W): which token of a prompt (or of its padding) stands at each column of a window."""
    columns = torch.arange(window, device=lengths.device)
    return columns + (lengths[:, None] - 1 - columns).clamp(min=0) // window * window


def column_mask(positions: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (R, 1, 1, C): each row sees the columns up to its position."""
    return additive_mask(torch.arange(columns, device=positions.device) > positions[:, None], dtype)


def additive_mask(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask (R, 1, 1, C) of what each row does not see, (R, C) bool.

    With four dimensions transformers takes it as it is, and waits for no device to look into it.
    """
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, -torch.inf)[:, None, None]
