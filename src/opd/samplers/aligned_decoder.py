"""Decoding of models whose rows must stand at one column (ALiBi, caches of their own kind).

Prompts are padded on the left so that all rows are at the same column; rows that have finished are
dropped by the cache's own `reorder_cache`, and are not replaced.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from opd.models.cache_support import cache_support
from opd.models.cached_forward import aligned_forward, left_pad, to_device
from opd.samplers.pace import Pace
from opd.samplers.rows import ALIVE, TOKEN, Job, Request, Rows, finished_rollout
from opd.types import Rollout

_DROP = 8  # rows are dropped once 1 / 8 of them have finished: it copies the cache


class AlignedDecoder:
    """Samples requests in batches of at most `rows`."""

    def __init__(self, job: Job, rows: int, pace: Pace) -> None:
        """Make a decoder.

        Args:
            job: the call of `sample`.
            rows: maximum rows.
            pace: of the host.
        """
        self.job, self.lm, self.count, self.pace = job, job.lm, rows, pace

    def run(self, requests: Sequence[Request], rollouts: dict[int, Rollout]) -> None:
        """See `SlabDecoder.run`."""
        for batch in _batches(requests, self.count):
            self._decode(batch, rollouts)

    def _decode(self, requests: Sequence[Request], rollouts: dict[int, Rollout]) -> None:
        job, device = self.job, self.lm.device
        rows = Rows(job, len(requests))
        state = rows.new_rows(requests, range(len(requests)))
        cache = DynamicCache(config=self.lm.config)
        hidden, mask = self._prefill(requests, cache)
        ready = cache_support(self.lm).ready_masks
        for t in range(job.limit):
            rows.sample(state, hidden)
            if t + 1 == job.limit:
                break
            if (t + 1) % self.pace.interval == 0:
                alive = np.array(state[ALIVE].tolist(), dtype=bool)
                if not alive.any():
                    break
                if (~alive).sum() >= max(1, len(alive) / _DROP):
                    index = to_device(alive.nonzero()[0], device)
                    cache.reorder_cache(index)
                    state, mask = state[:, index].contiguous(), mask[index]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            hidden = aligned_forward(self.lm, cache, state[TOKEN][:, None], mask, ready=ready)
            hidden = hidden[:, -1]
        words = rows.tape.data[: len(requests)].cpu().numpy()
        for request, row in zip(requests, words, strict=True):
            rollouts[request.index] = finished_rollout(job, rows.tape, request, row)

    def _prefill(self, requests: Sequence[Request], cache: DynamicCache) -> tuple[Tensor, Tensor]:
        """Hidden state (R, H) of each request's last prompt token, and mask (R, P).

        A prompt is read once for all its requests.
        """
        prompts = {id(r.prompt): r.prompt for r in requests}
        place = {key: i for i, key in enumerate(prompts)}
        ids, mask = left_pad([p.ids for p in prompts.values()], self.lm.device)
        hidden = aligned_forward(self.lm, cache, ids, mask)[:, -1]
        if len(prompts) == len(requests):
            return hidden, mask
        of_prompt = np.array([place[id(r.prompt)] for r in requests], dtype=np.int64)
        index = to_device(of_prompt, self.lm.device)
        cache.reorder_cache(index)
        return hidden[index], mask[index]


def _batches(requests: Sequence[Request], rows: int) -> list[list[Request]]:
    """At most `rows` requests each; those of one prompt stay together where they fit."""
    groups: list[list[Request]] = []
    for request in requests:
        if not groups or groups[-1][-1].prompt is not request.prompt or len(groups[-1]) == rows:
            groups.append([])
        groups[-1].append(request)
    batches: list[list[Request]] = []
    for group in groups:
        if not batches or len(batches[-1]) + len(group) > rows:
            batches.append([])
        batches[-1] += group
    return batches
