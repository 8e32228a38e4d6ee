"""How a model's cache can be used for decoding: measured once per model, not assumed.

Attention keeps keys and values, all or those of a window, linear attention and state spaces keep
states: rows of different lengths decode together in a `SlabCache`. Where that does not give the
model's hidden states (ALiBi, caches of another kind), rows are aligned by left padding in
transformers' own cache, which repeats and drops them (`reorder_cache`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from opd.core.batch import pad_rows
from opd.errors import UserError
from opd.models.cached_forward import aligned_forward, decode_step, left_pad, read_prompts
from opd.models.configs import rope_parameters
from opd.models.lm import LM, is_out_of_memory
from opd.models.model_size import kept_bytes
from opd.models.prefix_cache import relative_difference
from opd.models.slab_cache import SlabCache
from opd.models.slab_layers import layer_kinds

Layout = Literal["slabs", "aligned", "none"]
Sizes = tuple[list[int], int]  # bytes per token of layers, and of a row's recurrent states
_ERRORS = (
    TypeError,
    AttributeError,
    LookupError,
    ValueError,
    RuntimeError,
    AssertionError,
)


@dataclass(frozen=True)
class CacheSupport:
    """What a model's cache can do and how much memory it takes.

    Attributes:
        layout: "slabs": `SlabCache`; "aligned": transformers' own cache with left padding; "none":
            neither gives the model's hidden states, so it cannot be sampled.
        per_token: bytes per token of a row and the window of the layers that take them; None: they
            keep all tokens.
        states: bytes of a row's recurrent states, whatever its length.
        ready_masks: "aligned": a decoding step takes a mask of four dimensions.
        reason: why the layout is "none".
    """

    layout: Layout
    per_token: tuple[tuple[int, int | None], ...] = ()
    states: int = 0
    ready_masks: bool = False
    reason: str = ""

    def row_bytes(self, tokens: int) -> int:
        """Memory of one row of so many tokens."""
        return kept_bytes(self.per_token, tokens) + self.states


def cache_support(lm: LM) -> CacheSupport:
    """The model's `CacheSupport`, by a few small forwards at the first call.

    Weights may not be sharded then.
    """
    if lm.cache_support is None:
        lm.cache_support = _measure(lm)
    return lm.cache_support


def require_cache(lm: LM) -> None:
    """Refuse a model that cannot be sampled in this process.

    Raises:
        UserError: with its name and what went wrong.
    """
    support = cache_support(lm)
    if support.layout == "none":
        raise UserError(
            f"{lm.name}: {type(lm.causal).__name__} cannot be sampled here: its cache does not "
            f"give what the model computes without one ({support.reason}). Use a model of another "
            "architecture; docs/models.md names those that were tried."
        )


_WINDOW = 4  # tokens, fewer than of the longer prompt
# Two prompts, three responses of which two share a prompt, three tokens each. One prompt is a
# single token: where padding before it counts (biases ahead of a convolution), that shows most.
_PROMPTS, _OF_PROMPT, _RESPONSES = (
    (slice(0, 5), slice(3, 4)),
    (0, 1, 0),
    ((6, 9), (8, 11), (12, 15)),
)


@torch.no_grad()
def _measure(lm: LM) -> CacheSupport:
    candidates: list[Callable[[LM], CacheSupport]] = [
        partial(_aligned_support, ready=ready) for ready in (True, False)
    ]
    if layer_kinds(lm.config) and not rope_parameters(lm.config, "longrope", "dynamic"):
        candidates.insert(0, _slab_support)
    for support_of in candidates:
        try:
            support = support_of(lm)
        except _ERRORS as error:
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            message = (str(error) or "-").splitlines()[0]
            support = CacheSupport("none", reason=f"{type(error).__name__}: {message}")
        if support.layout != "none":
            break
    return support


def _slab_support(lm: LM) -> CacheSupport:
    windows = [kind.window for kind in layer_kinds(lm.config) or () if kind.attention]
    with _short_windows(lm.config) if any(windows) else nullcontext():
        difference, (sizes, states) = _difference(lm, _with_slabs)
    support = CacheSupport("slabs", tuple(zip(sizes, windows, strict=True)), states)
    return _refused(difference) or support


def _aligned_support(lm: LM, *, ready: bool) -> CacheSupport:
    difference, ((per_token,), states) = _difference(lm, partial(_aligned, ready=ready))
    support = CacheSupport("aligned", ((per_token, None),), states, ready_masks=ready)
    return _refused(difference) or support


def _refused(difference: float | None) -> CacheSupport | None:
    if difference is None:
        return None
    reason = f"hidden states with a cache differ from those without by {difference:.2g}"
    return CacheSupport("none", reason=reason)


@contextmanager
def _short_windows(config: Any) -> Iterator[None]:
    """Let windows be shorter than the texts that are measured."""
    config = config.get_text_config(decoder=True)
    window = config.sliding_window
    config.sliding_window = min(window, _WINDOW)
    try:
        yield
    finally:
        config.sliding_window = window


def _difference(
    lm: LM, states_of: Callable[[LM, Sequence[Sequence[int]], Tensor], tuple[Tensor, Sizes]]
) -> tuple[float | None, Sizes]:
    """How far states with a cache are from those without, None: near enough; and its bytes."""
    ids = (torch.arange(16) % lm.vocab).tolist()
    prompts = [ids[part] for part in _PROMPTS]
    responses = torch.tensor([ids[a:b] for a, b in _RESPONSES], device=lm.device)
    whole = [prompts[p] + r for p, r in zip(_OF_PROMPT, responses.tolist(), strict=True)]
    hidden = lm.hidden(pad_rows(whole).to(lm.device))
    expected = torch.stack(
        [row[len(prompts[p]) - 1 :][:4] for p, row in zip(_OF_PROMPT, hidden, strict=True)]
    )
    states, sizes = states_of(lm, prompts, responses)
    tolerance = 0.2 if expected.dtype == torch.bfloat16 else 0.01
    difference = relative_difference(states, expected)
    # What is not finite is reported when it is sampled.
    near = difference < tolerance or not bool(expected.isfinite().all())
    return None if near else difference, sizes


def _with_slabs(
    lm: LM, prompts: Sequence[Sequence[int]], responses: Tensor
) -> tuple[Tensor, Sizes]:
    """States (R, 4, H) of each prompt's last token and three more; bytes of layers and states.

    Rows are filled in another order than that of their prompts, and one stays free.
    """
    device, count = lm.device, len(responses)
    of_prompt = torch.tensor(_OF_PROMPT, device=device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)[of_prompt]
    slabs = SlabCache(lm.config, count + 1, 8, device)
    order = torch.tensor([2, 0, 1], device=device)  # the row of each response
    back = order.argsort()  # the response of each row
    states = [read_prompts(lm, slabs, prompts, (order, of_prompt), lengths)]
    for t in range(responses.shape[1]):
        hidden = decode_step(lm, slabs, responses[back, t], (lengths + t)[back], 8)
        states.append(hidden[order])
    return torch.stack(states, 1), (slabs.bytes_per_token(), slabs.bytes_of_states())


def _aligned(
    lm: LM, prompts: Sequence[Sequence[int]], responses: Tensor, *, ready: bool
) -> tuple[Tensor, Sizes]:
    """States as of `_with_slabs`, by left padding, and bytes per token and of recurrent states.

    Rows change places on the way, as when some finish.
    """
    cache, order = DynamicCache(config=lm.config), torch.tensor([2, 0, 1], device=lm.device)
    ids, mask = left_pad(prompts, lm.device)
    hidden = aligned_forward(lm, cache, ids, mask)
    index = torch.tensor(_OF_PROMPT, device=lm.device)
    states = [hidden[index, -1]]
    cache.reorder_cache(index)
    mask, sizes = mask[index], []
    rows = torch.arange(len(index), device=lm.device)
    for t in range(responses.shape[1]):
        sizes.append(_cache_bytes(cache) // len(index))
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        hidden = aligned_forward(lm, cache, responses[rows, t : t + 1], mask, ready=ready)
        states.append(hidden[rows.argsort(), -1])
        cache.reorder_cache(order)
        mask, rows = mask[order], rows[order]
    per_token = max(0, sizes[-1] - sizes[-2])
    return torch.stack(states, 1), ([per_token], sizes[0] - per_token * ids.shape[1])


def _cache_bytes(cache: Any) -> int:
    """Of all tensors of a cache's layers."""
    tensors = []
    for layer in cache.layers:
        for value in vars(layer).values():
            tensors += list(value.values()) if isinstance(value, dict) else [value]
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))
