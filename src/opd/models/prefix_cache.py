"""Prompts run once: the keys and values that their responses stand on.

Sampling prefills a prompt once for all its responses; update and teacher do so too, where
`opd.core.microbatches` finds it cheaper than every response behind its own copy.
Shapes: G prompts padded to P tokens, R responses fed L tokens each, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from opd.core.batch import pad_rows
from opd.models.lm import LM, is_out_of_memory, ropes


class SharedPrompts:
    """Some prompts, run once with their graph kept; responses read their keys and values.

    Responses come in any number of micro-batches, each with a backward of its own that stops at the
    prompts' keys and values. What arrives there is summed, and `backward` carries it through the
    prompts at the end. Held are the prompts and one micro-batch, and the gradient is that of whole
    rows.
    """

    def __init__(self, lm: LM, prompts: Sequence[Sequence[int]]) -> None:
        """Run the prompts, padded on the right: causal attention then needs no mask.

        Args:
            lm: a model that `shares_prompts`.
            prompts: token ids, at least one each.
        """
        self.lm, ids = lm, pad_rows(prompts).to(lm.device)
        cache = DynamicCache()  # plain layers: of a sliding one, padding would take the window
        hidden = lm.hidden(ids, past_key_values=cache, use_cache=True)
        self._even = len({len(p) for p in prompts}) == 1  # known here without asking the device
        self._lengths = torch.tensor([len(p) for p in prompts], device=lm.device)
        rows = torch.arange(len(prompts), device=lm.device)
        states = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        self._made = [hidden[rows, self._lengths - 1], *map(self._to_the_right, states)]
        self._last, *self._states = (x.detach().requires_grad_(x.requires_grad) for x in self._made)

    def _to_the_right(self, x: Tensor) -> Tensor:
        """Keys or values (G, heads, P, width) with each prompt moved to the end of its row.

        A response then follows its prompt without a gap, as sliding windows need.
        """
        width = x.shape[2]
        if self._even:
            return x
        steps = torch.arange(width, device=x.device)
        index = (steps + self._lengths[:, None]) % width
        return x.gather(2, index[:, None, :, None].expand_as(x))

    def hidden(self, owners: Tensor, input_ids: Tensor) -> Tensor:
        """Hidden states (R, 1 + L, H): of the prompt's last token, then of the response's.

        Args:
            owners: (R,) which prompt each response belongs to.
            input_ids: (R, L) right-padded; what comes after padding is not read by anyone.
        """
        cache, states = DynamicCache(), iter(self._states)
        cache.layers = [_Prompt(keys, next(states), owners) for keys in states]
        lengths, width = self._lengths[owners, None], cache.get_seq_length()
        before = torch.arange(width, device=owners.device) >= width - lengths
        positions = lengths + torch.arange(input_ids.shape[1], device=owners.device)
        if self.lm.context is not None:  # padding may run beyond it
            positions = positions.clamp(max=self.lm.context - 1)
        hidden = self.lm.hidden(
            input_ids,
            attention_mask=torch.cat([before.long(), torch.ones_like(input_ids)], 1),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return torch.cat([self._last.index_select(0, owners)[:, None], hidden], 1)

    def backward(self) -> None:
        """Carry what the micro-batches left at keys and values through the prompts."""
        given = [self._last, *self._states]
        reached = [i for i, x in enumerate(given) if x.grad is not None]
        if reached:
            made = [self._made[i] for i in reached]
            torch.autograd.backward(made, [given[i].grad for i in reached])


class _Prompt(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values of prompts, copied to their responses while that layer runs.

    Nothing is stored: one call follows the prompts, and copies of every layer at a time would be
    the largest thing there is.
    """

    def __init__(self, keys: Tensor, values: Tensor, owners: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self._owners = keys, values, owners

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (R, heads, P + L, width) of prompts and responses."""
        keys, values = (x.index_select(0, self._owners) for x in (self.keys, self.values))
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)


def shares_prompts(lm: LM) -> bool:
    """Whether prompts may be run once for their responses: tried at the first call, not assumed.

    Not with gradient checkpointing, which keeps no cache, nor with sharded weights, whose gathers
    and sums expect one forward a backward.
    """
    checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in lm.causal.modules())
    if lm.sharded is not None or checkpointing:
        return False
    if lm.can_share is None:
        # Rotations that follow the longest position of a call are not shared by two calls.
        lm.can_share = not ropes(lm.config, "longrope", "dynamic") and _same_both_ways(lm)
    return lm.can_share


@torch.no_grad()
def _same_both_ways(lm: LM) -> bool:
    """Whether two prompts of unequal length give three responses the states of whole rows.

    Families differ in what they keep between two calls: positions, windows, recurrent states.
    """
    if any(not isinstance(layer, DynamicLayer) for layer in DynamicCache(config=lm.config).layers):
        return False
    ids = torch.arange(16, device=lm.device) % lm.vocab
    prompts, owners = [ids[:5], ids[3:6]], torch.tensor([0, 1, 0], device=lm.device)
    responses = torch.stack([ids[6:10], ids[8:12], ids[12:16]])
    try:
        shared = SharedPrompts(lm, [p.tolist() for p in prompts]).hidden(owners, responses)
    except (TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    whole = torch.stack(
        [
            lm.hidden(torch.cat([prompts[owner], response])[None])[0, len(prompts[owner]) - 1 :]
            for owner, response in zip(owners.tolist(), responses, strict=True)
        ]
    )
    return _apart(shared, whole) < (0.2 if whole.dtype == torch.bfloat16 else 0.01)


def _apart(found: Tensor, wanted: Tensor) -> float:
    """Difference of hidden states (..., H) in spreads of a channel; the median channel's.

    A few channels of a language model are huge and say nothing; in the others rounding in bf16 is a
    few hundredths of what tells one token from another.
    """
    found, wanted = (x.flatten(0, -2).double() for x in (found, wanted))
    spread = (wanted - wanted.mean(0)).square().mean(0).sqrt()
    gap = (found - wanted).square().mean(0).sqrt()
    return float((gap / spread.clamp(min=1e-30)).median())
