"""A key-value cache that grows in place: appending one token never copies the tokens before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

_FIRST = 64  # tokens of room beyond the prompt before the first doubling


class SlabLayer(DynamicLayer):  # type: ignore[misc]
    """`DynamicLayer` whose keys and values are views of buffers with room to spare.

    The stock layer concatenates at every token, which copies the whole cache each time: quadratic
    in the length of the answer.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty; the first update decides shape, dtype and device."""
        super().lazy_initialization(key_states, value_states)
        self._slabs: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, heads, new, width) and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        total = used + key_states.shape[2]
        if self._slabs is None or total > self._slabs[0].shape[2]:
            self._grow(key_states, value_states, used, max(total + _FIRST, 2 * used))
        assert self._slabs is not None
        keys, values = self._slabs
        keys[:, :, used:total] = key_states
        values[:, :, used:total] = value_states
        self.keys, self.values = keys[:, :, :total], values[:, :, :total]
        return self.keys, self.values

    def _grow(self, key_states: Tensor, value_states: Tensor, used: int, room: int) -> None:
        slabs = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            slab = new.new_empty(*new.shape[:2], room, new.shape[3])
            if used:
                slab[:, :, :used] = old
            slabs.append(slab)
        self._slabs = (slabs[0], slabs[1])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row; buffers are made anew at the next update."""
        super().batch_repeat_interleave(repeats)
        self._slabs = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows; buffers are made anew at the next update."""
        super().batch_select_indices(indices)
        self._slabs = None


def growing_cache(config: Any) -> DynamicCache:
    """A cache for this model: slabs for plain attention, the stock layers for anything else."""
    cache = DynamicCache(config=config)
    cache.layers = [SlabLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
