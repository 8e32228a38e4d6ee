"""Layers of a `SlabCache`: keys and values by column, recurrent states by row.

A forward over prompts reads them as if nothing came before and leaves its results in the rows'
buffers; a decoding step works on the first rows of those buffers, at addresses that stay.
Shapes: R rows, B prompts of P tokens at most, N rows to fill, J key-value heads, C columns, D head
size, W window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)


@dataclass(frozen=True)
class LayerKind:
    """What a layer of a model keeps.

    Attributes:
        attention: keys and values of tokens.
        window: how many of them, None: all.
        states: kinds of recurrent states (of convolutions, linear attention, state spaces).
    """

    attention: bool
    window: int | None = None
    states: int = 0


def layer_kinds(config: Any) -> tuple[LayerKind, ...] | None:
    """What each layer keeps.

    Args:
        config: of a model.

    Returns:
        None where a layer is of yet another kind (chunks), or windows differ.
    """
    window = getattr(config.get_text_config(decoder=True), "sliding_window", None)
    kinds: list[LayerKind] = []
    for layer in DynamicCache(config=config).layers:
        if type(layer) is DynamicLayer:
            kinds.append(LayerKind(True))
        elif type(layer) is DynamicSlidingWindowLayer and layer.sliding_window == window:
            kinds.append(LayerKind(True, window))
        elif type(layer) is LinearAttentionLayer:
            kinds.append(LayerKind(False, None, layer.number_of_states))
        elif type(layer) is LinearAttentionAndFullAttentionLayer:
            kinds.append(LayerKind(True, None, layer.number_of_states))
        else:
            return None
    return tuple(kinds) or None


@dataclass(frozen=True)
class PromptRows:
    """Which rows a forward over prompts fills.

    Attributes:
        rows: (N,) rows to fill.
        prompts: (N,) which prompt each of them gets.
        lengths: (N,) tokens of that prompt.
        left: padding comes before a prompt's tokens, not after them.
    """

    rows: Tensor
    prompts: Tensor
    lengths: Tensor
    left: bool


class Access:
    """What the next forward writes and reads: `prompts`, or where that is None a decoding step."""

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        """See `SlabCache`."""
        self.rows, self.columns = rows, columns
        self.all_rows = torch.arange(rows, device=device)
        self.prompts: PromptRows | None = None
        self.count, self.read = 0, 0  # rows that take part, columns that they attend to
        self.positions = self.all_rows  # column that each of them writes

    def seen(self) -> int:
        """Tokens before those of the next forward, where a model asks."""
        return 0 if self.prompts is not None else self.read - 1


class AttentionSlab(DynamicLayer):  # type: ignore[misc]
    """Keys and values (R, J, C, D) as transformers knows them."""

    def __init__(self, access: Access, kind: LayerKind) -> None:
        DynamicLayer.__init__(self)
        self.access, self.window = access, kind.window
        self.slabs: tuple[Tensor, ...] = ()
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a forward's keys and values (B, J, P, D) and return those to attend to."""
        new, access = (key_states, value_states), self.access
        if not self.slabs:
            size = self._size(access.columns)
            self.slabs = tuple(x.new_zeros(access.rows, x.shape[1], size, x.shape[3]) for x in new)
        if access.prompts is not None:
            for slab, x in zip(self.slabs, new, strict=True):
                _keep_prompts(slab, x, access.prompts)
            return key_states, value_states  # prompts attend to themselves alone
        positions = access.positions
        if self.window is not None:
            positions = positions % self.window
        for slab, x in zip(self.slabs, new, strict=True):
            slab[access.all_rows[: access.count], :, positions] = x[:, :, 0]
        keys, values = (slab[: access.count, :, : access.read] for slab in self.slabs)
        return keys, values

    def get_seq_length(self) -> int:
        """See `Access.seen`."""
        return self.access.seen()

    def grow(self, columns: int) -> None:
        """Move to buffers with more columns, one after another."""
        columns, slabs = self._size(columns), list(self.slabs)
        if slabs and slabs[0].shape[2] == columns:
            return  # a window that is full
        self.slabs = ()
        for i, old in enumerate(slabs):
            slabs[i] = old.new_zeros(*old.shape[:2], columns, old.shape[3])
            slabs[i][:, :, : old.shape[2]] = old
        self.slabs = tuple(slabs)

    def move_columns(self, source: Tensor, target: Tensor, columns: int) -> None:
        """Copy the first columns of rows `source` to rows `target`."""
        for slab in self.slabs:
            slab[target, :, :columns] = slab[source, :, :columns]

    def bytes_per_token(self) -> int:
        """Of a row, once they are allocated."""
        return sum(x.shape[1] * x.shape[3] * x.element_size() for x in self.slabs)

    def _size(self, columns: int) -> int:
        """Columns of its buffers where a row has room for so many tokens."""
        return columns if self.window is None else min(columns, self.window)


class StateSlab(LinearAttentionLayer):  # type: ignore[misc]
    """Recurrent states, one (R, ...) buffer for each kind, as transformers knows them."""

    def __init__(self, access: Access, kind: LayerKind) -> None:
        LinearAttentionLayer.__init__(self, number_of_states=kind.states)
        self.access = access
        self.states: dict[tuple[str, int], Tensor] = {}

    def begin(self) -> None:
        """Forget the last forward: prompts begin without a state, a step with those of its rows."""
        step = self.access.prompts is None
        for i in range(self.number_of_states):
            self.has_previous_state[i] = step
            for name in ("conv", "recurrent"):
                slab = self.states.get((name, i)) if step else None
                self._hold(name, i, None if slab is None else slab[: self.access.count])

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **kwargs: Any) -> Tensor:
        """See `LinearAttentionLayer.update_conv_state`; a step changes the rows in place."""
        whole: Tensor = super().update_conv_state(conv_states, state_idx, **kwargs)
        self._keep("conv", state_idx, self.conv_states[state_idx])
        return whole

    def update_recurrent_state(
        self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """See `LinearAttentionLayer.update_recurrent_state`; a step changes the rows in place."""
        state: Tensor = super().update_recurrent_state(recurrent_states, state_idx, **kwargs)
        self._keep("recurrent", state_idx, state)
        return state

    def move_states(self, source: Tensor, target: Tensor) -> None:
        """Copy the states of rows `source` to rows `target`."""
        for slab in self.states.values():
            slab[target] = slab[source]

    def release_states(self) -> None:
        """Free the buffers."""
        self.states.clear()
        self.begin()

    def bytes_of_states(self) -> int:
        """Of a row, once they are allocated."""
        return sum(x[0].numel() * x.element_size() for x in self.states.values())

    def _hold(self, name: str, index: int, state: Tensor | None) -> None:
        """Set what transformers' own code reads and writes as the state."""
        of_conv = name == "conv"
        held = self.conv_states if of_conv else self.recurrent_states
        there = self.is_conv_states_initialized if of_conv else self.is_recurrent_states_initialized
        held[index], there[index] = state, state is not None

    def _keep(self, name: str, index: int, state: Tensor) -> None:
        """Leave the state (B, ...) after prompts in the buffer of their rows, and nowhere else."""
        filled = self.access.prompts
        if filled is None:
            return
        self._hold(name, index, None)
        slab = self.states.get((name, index))
        if slab is None:
            slab = state.new_zeros(self.access.rows, *state.shape[1:])
            self.states[name, index] = slab
        slab[filled.rows] = state[filled.prompts]


class MixedSlab(StateSlab, AttentionSlab):
    """Both, side by side in one layer."""

    def __init__(self, access: Access, kind: LayerKind) -> None:
        AttentionSlab.__init__(self, access, kind)
        StateSlab.__init__(self, access, kind)


Slab = AttentionSlab | StateSlab


def make_slab(access: Access, kind: LayerKind) -> Slab:
    """The layer for what a model's layer keeps."""
    if not kind.states:
        return AttentionSlab(access, kind)
    return MixedSlab(access, kind) if kind.attention else StateSlab(access, kind)


def _keep_prompts(slab: Tensor, new: Tensor, filled: PromptRows) -> None:
    """Write keys or values (B, J, P, D) of prompts to the columns of their rows."""
    width = min(new.shape[2], slab.shape[2])
    if not filled.left and width == new.shape[2]:
        slab[filled.rows, :, :width] = new[filled.prompts]
        return
    at = _last_tokens(filled.lengths, width)
    if filled.left:
        at = (at + (new.shape[2] - filled.lengths)[:, None]).clamp(max=new.shape[2] - 1)
    slab[filled.rows, :, :width] = new[filled.prompts[:, None], :, at].transpose(1, 2)


def _last_tokens(lengths: Tensor, window: int) -> Tensor:
    """(N, W): which token of a prompt (or of its padding) stands at each column of a window."""
    columns = torch.arange(window, device=lengths.device)
    return columns + (lengths[:, None] - 1 - columns).clamp(min=0) // window * window
