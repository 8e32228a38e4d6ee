"""The decoding loop that opd had before: one group of left-padded rows after another.

Slow and simple; what samplers must reproduce token by token.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers.cache_utils import DynamicCache

from opd.models.cached_forward import left_pad
from opd.samplers.sampling import first_samples, sample_tokens, uniform
from opd.types import Rollout


@torch.no_grad()
def reference_sample(lm, decoding, prompts, *, n, key, stop, capture, limit=None):
    """Rollouts of `HFSampler.sample`, one prompt at a time."""
    limit = min(limit or decoding.max_new_tokens, decoding.max_new_tokens)
    rollouts = []
    for prompt, first in zip(prompts, first_samples(prompts, n), strict=True):
        numbers = np.stack([uniform(key, prompt.index, first + j, limit) for j in range(n)])
        tokens = _decode(lm, decoding, prompt, torch.from_numpy(numbers), stop, capture)
        for j, columns in enumerate(tokens):
            ids, *statistics = (np.array(column) for column in zip(*columns, strict=True))
            finish = "stop" if int(ids[-1]) in stop else "length"
            rollouts.append(Rollout(prompt, first + j, ids.astype(np.int32), *statistics, finish))
    return rollouts


def _decode(lm, decoding, prompt, numbers, stop, capture):
    n, limit = numbers.shape
    ids, mask = left_pad([prompt.ids] * n, lm.device)
    cache = DynamicCache(config=lm.config)
    tokens = [[] for _ in range(n)]
    alive = [True] * n
    for t in range(limit):
        hidden = lm.hidden(ids, attention_mask=mask, past_key_values=cache, use_cache=True)[:, -1]
        drawn = sample_tokens(lm.head.logits(hidden), numbers[:, t], decoding, capture)
        for row in range(n):
            if alive[row]:
                tokens[row].append([x[row].cpu().numpy() for x in drawn])
                alive[row] = int(drawn.ids[row]) not in stop
        if not any(alive):
            break
        ids, mask = drawn.ids[:, None], torch.cat([mask, mask.new_ones(n, 1)], 1)
    return tokens
