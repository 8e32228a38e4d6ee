"""From logits to tokens: temperature, truncation, inverse of the cumulative distribution.

Nothing here waits for the device, so that a step that samples can be captured as a CUDA graph.
Shapes: R rows, K captured top tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opd.core.cpu_kernels import topk
from opd.core.precision import at_least_float32
from opd.rng import generator_of
from opd.samplers.decoding import Decoding
from opd.types import Prompt, Sampler

_CDF_BLOCK = 128  # tokens per partial sum of `invert_cdf`
_NUCLEUS = 64  # most probable tokens among which top-p is looked for before the whole vocabulary


MakeSampler = Callable[[Decoding, int | None], Sampler]
"""Makes samplers of one model, in this process or on a server, from a decoding and K, the top
tokens to record per position; None: tokens alone are wanted."""


class Statistics(NamedTuple):
    """One sampled token per row, with the model's statistics of it; (R,) or (R, K)."""

    ids: Tensor
    logp: Tensor
    entropy: Tensor
    topk_ids: Tensor
    topk_logp: Tensor


def sample_tokens(logits: Tensor, uniforms: Tensor, decoding: Decoding, capture: int) -> Statistics:
    """Sample one token per row.

    Args:
        logits: (R, V).
        uniforms: (R,) one uniform number per row.
        decoding: temperature and truncation.
        capture: K; statistics are of the untruncated distribution at the sampling temperature.
    """
    logits = at_least_float32(logits)
    if decoding.temperature not in (0.0, 1.0):
        logits = logits / decoding.temperature
    logp = torch.log_softmax(logits, -1)
    probs = logp.exp()
    greedy = decoding.temperature == 0
    tokens = logp.argmax(-1) if greedy else draw(probs, uniforms, decoding.top_p)
    topk_logp, topk_ids = topk(logp, capture)
    sampled = logp.gather(1, tokens[:, None]).squeeze(1)
    return Statistics(tokens, sampled, -(probs * logp).sum(-1), topk_ids, topk_logp)


def first_samples(prompts: Sequence[Prompt], n: int) -> list[int]:
    """Sample index of the first response of each prompt; a repeated prompt goes on counting."""
    counts: dict[int, int] = {}
    first = []
    for prompt in prompts:
        first.append(counts.get(prompt.index, 0))
        counts[prompt.index] = first[-1] + n
    return first


def uniform(key: Sequence[int], prompt: int, sample: int, count: int) -> np.ndarray:
    """Uniform numbers of one rollout, a function of (key, prompt, sample) alone."""
    return generator_of((*key, prompt, sample)).random(count)


def draw(probs: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Token ids (R,) drawn from probs (R, V) within top-p.

    On a CPU the set of top-p is looked for among a row's most probable tokens first: to sort a
    vocabulary of 152 thousand took more than half of the time of sampling. Rows whose set is larger
    are sorted whole. A branch on their number would wait for an accelerator, which sorts quickly.
    """
    if top_p == 1 or probs.device.type != "cpu" or probs.shape[1] <= _NUCLEUS:
        return invert_cdf(truncate(probs, top_p), uniforms)
    values, ids = topk(probs, _NUCLEUS)
    values, total = values.double(), probs.sum(-1, keepdim=True, dtype=torch.float64)
    # Of tokens as probable as the last one, some may be missing: those above it are complete.
    above = torch.where(values > values[:, -1:], values, 0.0).sum(-1)
    narrow = above >= top_p * total[:, 0]
    tokens = torch.empty(len(probs), dtype=torch.long, device=probs.device)
    if narrow.any():
        by_id = ids[narrow].sort(-1)
        kept = truncate(values[narrow].gather(1, by_id.indices), top_p, total[narrow])
        chosen = invert_cdf(kept, uniforms[narrow])[:, None]
        tokens[narrow] = by_id.values.gather(1, chosen).squeeze(1)
    if not narrow.all():
        tokens[~narrow] = invert_cdf(truncate(probs[~narrow], top_p), uniforms[~narrow])
    return tokens


def truncate(probs: Tensor, top_p: float, total: Tensor | None = None) -> Tensor:
    """Probabilities (R, N), unnormalised, with top-p truncation applied; equal ones by position.

    Args:
        probs: (R, N).
        top_p: the most probable are kept until they have this share of `total`.
        total: (R, 1), of a whole row of which `probs` is a part; None: their sum.
    """
    if top_p == 1:
        return probs
    ordered, indices = torch.sort(probs.double(), dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(-1) - ordered
    whole = ordered.sum(-1, keepdim=True) if total is None else total
    dropped = mass_before >= top_p * whole
    return probs.double().scatter(1, indices, ordered.masked_fill(dropped, 0.0))


def invert_cdf(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Token ids (R,) where the cumulative sum of probs (R, V) first exceeds uniforms (R,).

    A row's token depends on that row alone, so batch composition cannot change it. Sums are in
    float64: in float32 the tail of a large vocabulary would be lost to rounding. First the block of
    tokens is found, then the token in it; a cumulative sum of the whole row is ten times slower.
    """
    rows, vocab = probs.shape
    if vocab % _CDF_BLOCK:
        probs = torch.nn.functional.pad(probs, (0, -vocab % _CDF_BLOCK))
    blocks = probs.reshape(rows, -1, _CDF_BLOCK)
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniforms.to(ends)[:, None] * ends[:, -1:]
    block = _first_above(ends, target)
    before = ends.gather(1, (block - 1).clamp(min=0)) * (block > 0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, -1, _CDF_BLOCK)).squeeze(1)
    offset = _first_above(inside.cumsum(-1, dtype=torch.float64), target - before)
    return (block * _CDF_BLOCK + offset).squeeze(1).clamp(max=vocab - 1)


def _first_above(sums: Tensor, target: Tensor) -> Tensor:
    """Index (R, 1) of the first of rising `sums` (R, N) above target (R, 1).

    Rounding may leave none above it: then the last that rose, never an entry of probability 0.
    """
    index = torch.searchsorted(sums, target, right=True)
    last = torch.searchsorted(sums, sums[:, -1:].contiguous())
    return torch.minimum(index, last).clamp(max=sums.shape[1] - 1)  # sums that are not finite
