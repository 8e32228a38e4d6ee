"""Prefix sharing: a prompt's keys and values are computed once for all of its responses.

Sampling prefills a prompt once for all its responses; update and teacher do so too, where
`opd.core.microbatches` finds it cheaper than a copy of the prompt in every row.
Shapes: G prompts padded to P tokens, R responses with L input tokens each, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from opd.core.batch import pad_rows
from opd.models.configs import rope_parameters
from opd.models.lm import LM, is_out_of_memory


class PrefixCache:
    """Keys and values of some prompts, computed once with their graph kept.

    Responses come in any number of micro-batches, each with a backward of its own that stops at the
    prompts' keys and values. What arrives there is summed, and `backward` carries it through the
    prompts at the end. So only the prompts and one micro-batch are held in memory, and the gradient
    is that of rows with their own prompts.
    """

    def __init__(self, lm: LM, prompts: Sequence[Sequence[int]]) -> None:
        """Compute the prompts, padded on the right: causal attention then needs no mask.

        Args:
            lm: a model that `supports_prefix_cache`.
            prompts: token ids, at least one each.
        """
        self.lm, ids = lm, pad_rows(prompts).to(lm.device)
        cache = DynamicCache()  # plain layers: in a sliding window padding would displace tokens
        hidden = lm.hidden(ids, past_key_values=cache, use_cache=True)
        self._equal_lengths = len({len(p) for p in prompts}) == 1  # known without a device sync
        self._lengths = torch.tensor([len(p) for p in prompts], device=lm.device)
        rows = torch.arange(len(prompts), device=lm.device)
        states = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        self._computed = [hidden[rows, self._lengths - 1], *map(self._align_right, states)]
        # What responses attend to: leaves without a graph, on which their gradients are summed.
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in self._computed]
        self._last_hidden, *self._states = leaves

    def _align_right(self, x: Tensor) -> Tensor:
        """Keys or values (G, heads, P, size) with each prompt moved to the end of its row.

        A response then follows its prompt without a gap, as sliding windows need.
        """
        length = x.shape[2]
        if self._equal_lengths:
            return x
        steps = torch.arange(length, device=x.device)
        index = (steps + self._lengths[:, None]) % length
        return x.gather(2, index[:, None, :, None].expand_as(x))

    def hidden(self, prompt_index: Tensor, input_ids: Tensor) -> Tensor:
        """Hidden states (R, 1 + L, H): of the prompt's last token, then of the response's.

        Args:
            prompt_index: (R,) which prompt each response continues.
            input_ids: (R, L) right-padded; states of padding are never read.
        """
        cache, states = DynamicCache(), iter(self._states)
        cache.layers = [_PromptLayer(keys, next(states), prompt_index) for keys in states]
        lengths, longest = self._lengths[prompt_index, None], cache.get_seq_length()
        prompt_mask = torch.arange(longest, device=prompt_index.device) >= longest - lengths
        positions = lengths + torch.arange(input_ids.shape[1], device=prompt_index.device)
        if self.lm.context_length is not None:  # padding may run beyond it
            positions = positions.clamp(max=self.lm.context_length - 1)
        hidden = self.lm.hidden(
            input_ids,
            attention_mask=torch.cat([prompt_mask.long(), torch.ones_like(input_ids)], 1),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return torch.cat([self._last_hidden.index_select(0, prompt_index)[:, None], hidden], 1)

    def backward(self) -> None:
        """Carry the gradients that micro-batches left at keys and values through the prompts."""
        leaves = [self._last_hidden, *self._states]
        reached = [i for i, x in enumerate(leaves) if x.grad is not None]
        if reached:
            computed = [self._computed[i] for i in reached]
            torch.autograd.backward(computed, [leaves[i].grad for i in reached])


class _PromptLayer(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values of prompts, copied to their responses while that layer runs.

    Nothing is stored: a cache is used in one call only, and copies of every layer at a time would
    take more memory than anything else.
    """

    def __init__(self, keys: Tensor, values: Tensor, prompt_index: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self._prompt_index = keys, values, prompt_index

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (R, heads, P + L, size) of prompts and responses."""
        keys, values = (x.index_select(0, self._prompt_index) for x in (self.keys, self.values))
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)


def supports_prefix_cache(lm: LM) -> bool:
    """Whether responses may share their prompts: measured at the first call, not assumed.

    Not with gradient checkpointing, which keeps no cache, nor with sharded weights, whose
    collectives expect one forward per backward.
    """
    checkpointing = any(getattr(m, "gradient_checkpointing", False) for m in lm.causal.modules())
    if lm.sharded is not None or checkpointing:
        return False
    if lm.prefix_cache_works is None:
        # Rotary embeddings that depend on the longest position of a call differ between two calls.
        per_call = rope_parameters(lm.config, "longrope", "dynamic")
        lm.prefix_cache_works = not per_call and _matches_whole_rows(lm)
    return lm.prefix_cache_works


@torch.no_grad()
def _matches_whole_rows(lm: LM) -> bool:
    """Whether two prompts of unequal length give three responses the states of whole rows.

    Families differ in what they keep between two calls: positions, windows, recurrent states.
    """
    if any(not isinstance(layer, DynamicLayer) for layer in DynamicCache(config=lm.config).layers):
        return False
    ids = torch.arange(16, device=lm.device) % lm.vocab
    prompts, prompt_index = [ids[:5], ids[3:6]], torch.tensor([0, 1, 0], device=lm.device)
    responses = torch.stack([ids[6:10], ids[8:12], ids[12:16]])
    try:
        shared = PrefixCache(lm, [p.tolist() for p in prompts]).hidden(prompt_index, responses)
    except (TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return False
    whole = torch.stack(
        [
            lm.hidden(torch.cat([prompts[i], response])[None])[0, len(prompts[i]) - 1 :]
            for i, response in zip(prompt_index.tolist(), responses, strict=True)
        ]
    )
    tolerance = 0.2 if whole.dtype == torch.bfloat16 else 0.01
    return relative_difference(shared, whole) < tolerance


def relative_difference(states: Tensor, expected: Tensor) -> float:
    """Difference of hidden states (..., H) in standard deviations of a channel; the median channel.

    A few channels of a language model are huge and say nothing; in the others rounding in bf16 is a
    few hundredths of what tells one token from another.
    """
    states, expected = (x.flatten(0, -2).double() for x in (states, expected))
    deviation = (expected - expected.mean(0)).square().mean(0).sqrt()
    difference = (states - expected).square().mean(0).sqrt()
    return float((difference / deviation.clamp(min=1e-30)).median())
