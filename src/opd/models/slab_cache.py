"""A key-value cache of rows that are at different lengths, in buffers that stay where they are.

Every row writes at its own position, so no row is padded on the left, a finished row's place can be
given to another prompt, and a decoding step is a function of tensors at fixed addresses, as a CUDA
graph needs. What lies beyond a row's length is masked.
Shapes: R rows, B prompts of P tokens at most, J key-value heads, C columns, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


class SlabCache:
    """Keys and values of at most `rows` rows; `cache` is what a model takes.

    Before each forward, `prefill` or `decode` says what it writes and reads.
    """

    def __init__(self, config: Any, rows: int, columns: int, device: torch.device) -> None:
        """Make a cache; a layer's buffers are allocated when it is first written.

        Args:
            config: of the model; its layers must be plain attention (`has_plain_layers`).
            rows: maximum rows.
            columns: tokens that a row has room for; see `reserve`.
            device: of the model.
        """
        self.rows, self.columns = rows, columns
        self.cache: Cache = DynamicCache(config=config)
        self.layers = [_SlabLayer(self) for _ in self.cache.layers]
        self.cache.layers = self.layers
        self._all_rows = torch.arange(rows, device=device)
        self._filled: tuple[Tensor, Tensor] | None = None
        self._reads = (0, 0)
        self._positions = self._all_rows

    def reserve(self, columns: int) -> None:
        """Make room for `columns` tokens per row; buffers that are too small move."""
        if columns <= self.columns:
            return
        self.columns = columns
        for layer in self.layers:
            layer.grow(columns)

    def prefill(self, rows: Tensor, prompts: Tensor) -> None:
        """Have the next forward, over (B, P) prompts, fill rows from column 0 on.

        Args:
            rows: (N,) rows to fill.
            prompts: (N,) which prompt each of them gets.
        """
        self._filled = (rows, prompts)

    def decode(self, rows: int, columns: int, positions: Tensor) -> None:
        """Have the next forward, over one token per row, write at (rows,) positions.

        Args:
            rows: the first rows of the cache take part.
            columns: the first columns are returned for attention.
            positions: column that each row writes.
        """
        self._filled, self._reads, self._positions = None, (rows, columns), positions

    def move(self, source: Tensor, target: Tensor, columns: int) -> None:
        """Copy the first columns of rows `source` to rows `target`."""
        for layer in self.layers:
            for slab in layer.slabs:
                slab[target, :, :columns] = slab[source, :, :columns]

    def release(self) -> None:
        """Free the buffers."""
        for layer in self.layers:
            layer.slabs = ()

    def bytes_per_token(self) -> int:
        """Of all layers, once they are allocated."""
        slabs = [slab for layer in self.layers for slab in layer.slabs]
        return sum(x.shape[1] * x.shape[3] * x.element_size() for x in slabs)

    def store(self, layer: _SlabLayer, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a forward's keys and values (B, J, P, D) and return those to attend to."""
        if not layer.slabs:
            layer.slabs = tuple(
                x.new_zeros(self.rows, x.shape[1], self.columns, x.shape[3]) for x in (keys, values)
            )
        if self._filled is not None:
            rows, prompts = self._filled
            for slab, new in zip(layer.slabs, (keys, values), strict=True):
                slab[rows, :, : new.shape[2]] = new[prompts]
            return keys, values  # prompts attend to themselves alone
        count, columns = self._reads
        for slab, new in zip(layer.slabs, (keys, values), strict=True):
            slab[self._all_rows[:count], :, self._positions] = new[:, :, 0]
        keys, values = (slab[:count, :, :columns] for slab in layer.slabs)
        return keys, values

    def seen(self) -> int:
        """Tokens before those of the next forward, where a model asks."""
        return 0 if self._filled is not None else self._reads[1] - 1


class _SlabLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of a `SlabCache` as transformers knows it."""

    def __init__(self, owner: SlabCache) -> None:
        super().__init__()
        self.owner = owner
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

    def grow(self, columns: int) -> None:
        """Move to buffers with more columns, one after another."""
        slabs = list(self.slabs)
        self.slabs = ()
        for i, old in enumerate(slabs):
            slabs[i] = old.new_zeros(*old.shape[:2], columns, old.shape[3])
            slabs[i][:, :, : old.shape[2]] = old
        self.slabs = tuple(slabs)


def has_plain_layers(config: Any) -> bool:
    """Whether every layer keeps all keys and values: no windows, no recurrent states."""
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def column_mask(positions: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """Additive mask (R, 1, 1, C): each row sees the columns up to its position.

    With four dimensions transformers takes it as it is, and waits for no device to look into it.
    """
    hidden = torch.arange(columns, device=positions.device) > positions[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return mask.masked_fill_(hidden, -torch.inf)[:, None, None]
