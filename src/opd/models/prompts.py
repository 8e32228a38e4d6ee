"""Prompts run once: the key-value cache that their responses stand on.

Sampling prefills a prompt once for all its responses; update and teacher do so too, where
`opd.core.plan` finds it cheaper than every response behind its own copy.
Shapes: G prompts padded to P tokens, R responses fed L tokens each, H hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from opd.models.lm import LM


def prefill(lm: LM, prompts: Sequence[Sequence[int]], cache: Any) -> tuple[Tensor, Tensor]:
    """Fill a cache with prompts; hidden state (G, H) of each one's last token, and mask (G, P).

    Padded on the left: a response then follows its prompt without a gap, as sliding windows need.
    """
    width = max(len(ids) for ids in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    mask = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ids, mask = ids.to(lm.device), mask.to(lm.device)
    hidden = lm.hidden(
        ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )
    return hidden[:, -1], mask


class SharedPrompts:
    """Some prompts, run once with their graph kept; responses are fed on copies of the cache.

    Responses come in any number of micro-batches, each with a backward of its own that stops at the
    cache. What arrives there is summed, and `backward` carries it through the prompts at the end:
    the gradient is that of whole rows, and no more than one micro-batch is held at a time.
    """

    def __init__(self, lm: LM, prompts: Sequence[Sequence[int]]) -> None:
        """Run the prompts.

        Args:
            lm: a model that `shares_prompts`.
            prompts: token ids, at least one each.
        """
        self.lm, self.cache = lm, DynamicCache(config=lm.config)
        last, self.mask = prefill(lm, prompts, self.cache)
        states = [x for layer in self.cache.layers for x in (layer.keys, layer.values)]
        self._made = [last, *states]
        self._last, *self._states = (x.detach().requires_grad_(x.requires_grad) for x in self._made)

    def hidden(self, owners: Tensor, input_ids: Tensor) -> Tensor:
        """Hidden states (R, 1 + L, H): of the prompt's last token, then of the response's.

        Args:
            owners: (R,) which prompt each response belongs to.
            input_ids: (R, L) right-padded; what comes after padding is not read by anyone.
        """
        mask, states = self.mask[owners], iter(self._states)
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            layer.keys = next(states).index_select(0, owners)
            layer.values = next(states).index_select(0, owners)
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.lm.hidden(
            input_ids,
            attention_mask=torch.cat([mask, torch.ones_like(input_ids)], 1),
            position_ids=mask.sum(1, keepdim=True) + steps,
            past_key_values=cache,
            use_cache=True,
        )
        return torch.cat([self._last.index_select(0, owners)[:, None], hidden], 1)

    def backward(self) -> None:
        """Carry what the micro-batches left at the cache through the prompts."""
        given = [self._last, *self._states]
        reached = [i for i, x in enumerate(given) if x.grad is not None]
        if reached:
            torch.autograd.backward(
                [self._made[i] for i in reached], [given[i].grad for i in reached]
            )


def shares_prompts(lm: LM) -> bool:
    """Whether prompts may be run once for their responses: tried at the first call, not assumed.

    Not with gradient checkpointing, which keeps no cache, nor with sharded weights, whose gathers
    and sums expect one forward a backward.
    """
    checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in lm.causal.modules())
    if lm.sharded is not None or checkpointing:
        return False
    if lm.can_share is None:
        lm.can_share = _same_both_ways(lm)
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
    except (TypeError, AttributeError, IndexError, ValueError, RuntimeError):
        return False
    for row, owner in enumerate(owners.tolist()):
        prompt = prompts[owner]
        whole = lm.hidden(torch.cat([prompt, responses[row]])[None])[0, len(prompt) - 1 :]
        # A norm in bf16 rounds by 0.4 %, a few layers of it by a few times that.
        tolerance = 0.1 if whole.dtype == torch.bfloat16 else 1e-3
        if not (shared[row] - whole).abs().max() <= tolerance * whole.abs().max():
            return False
    return True
