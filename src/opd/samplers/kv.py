"""A key-value cache that grows in place: appending one token does not copy the earlier tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

_MIN_RESERVE = 64  # tokens reserved beyond the prompt


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """`DynamicLayer` whose keys and values are views of buffers with spare capacity.

    The stock layer concatenates at every token, which copies the whole cache each time: quadratic
    in the length of the completion.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start empty; the first update sets shape, dtype and device."""
        super().lazy_initialization(key_states, value_states)
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, heads, new, width) and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        used = self.get_seq_length()
        total = used + key_states.shape[2]
        if self._buffers is None or total > self._buffers[0].shape[2]:
            self._grow(key_states, value_states, used, max(total + _MIN_RESERVE, 2 * used))
        assert self._buffers is not None
        keys, values = self._buffers
        keys[:, :, used:total] = key_states
        values[:, :, used:total] = value_states
        self.keys, self.values = keys[:, :, :total], values[:, :, :total]
        return self.keys, self.values

    def _grow(self, key_states: Tensor, value_states: Tensor, used: int, capacity: int) -> None:
        buffers = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            buffer = new.new_empty(*new.shape[:2], capacity, new.shape[3])
            if used:
                buffer[:, :, :used] = old
            buffers.append(buffer)
        self._buffers = (buffers[0], buffers[1])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row; buffers are reallocated at the next update."""
        super().batch_repeat_interleave(repeats)
        self._buffers = None

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only some rows; buffers are reallocated at the next update."""
        super().batch_select_indices(indices)
        self._buffers = None


def growing_cache(config: Any) -> DynamicCache:
    """A cache for this model: `GrowingLayer` for plain attention, else the stock layers."""
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
