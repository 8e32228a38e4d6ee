"""Rollouts and scores of arbitrary bits, and their comparison bit for bit."""

from __future__ import annotations

import numpy as np
import torch

from opd.types import Prompt, Rollout, Scores


def floats(rng, *shape):
    """Any float32 bits: infinities, NaNs with payloads, both zeros, denormals."""
    raw = rng.integers(0, 2**32, shape, dtype=np.uint32)
    special = np.array([0, 0x80000000, 0x7F800000, 0x7FC00001, 0x7FC00002, 1], np.uint32)
    raw.reshape(-1)[: len(special)] = special[: raw.size]
    return raw.view(np.float32)


def make_rollout(rng, index, length, k=4, **changes):
    fields = {
        "prompt": Prompt(index, (5, 0, 2**31 - 1), "2 + 2 = ?", "4", "sums.jsonl"),
        "sample": 1,
        "ids": rng.integers(0, 2**31, length).astype(np.int32),
        "logp": floats(rng, length),
        "entropy": floats(rng, length),
        "topk_ids": rng.integers(0, 2**31, (length, k)).astype(np.int32),
        "topk_logp": floats(rng, length, k),
        "finish": "stop",
        "version": 7,
    }
    return Rollout(**fields | changes)


def make_scores(rng, length, k=4, hidden=torch.bfloat16):
    positions = np.arange(0, length, 2, dtype=np.int32)
    size = torch.empty(0, dtype=hidden).element_size()
    raw = rng.integers(0, 256, len(positions) * 6 * size, dtype=np.uint8)
    if len(positions):
        states = torch.from_numpy(raw).view(hidden).reshape(-1, 6)
    else:
        states = torch.empty((0, 6), dtype=hidden)
    return Scores(
        sampled=floats(rng, length),
        support=floats(rng, length, k),
        log_z=floats(rng, length),
        entropy=floats(rng, length),
        topk_ids=rng.integers(0, 99, (length, k + 1)).astype(np.int32),
        topk_logp=floats(rng, length, k + 1),
        positions=positions,
        hidden=states,
        view=Scores(
            sampled=floats(rng, length),
            log_z=floats(rng, length),
            entropy=floats(rng, length),
            topk_ids=rng.integers(0, 99, (length, 8)).astype(np.int32),
            topk_logp=floats(rng, length, 8),
        ),
    )


def frozen(value):
    """Everything in a record, arrays by dtype, shape and bytes, so that == means bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), bytes(value.reshape(-1).view(torch.uint8))
    if isinstance(value, Rollout | Scores):
        return [frozen(getattr(value, name)) for name in value.__slots__]
    if isinstance(value, list | tuple):
        return [frozen(v) for v in value]
    return value


def batch_of(rng, lengths, **options):
    batch = [make_rollout(rng, i, n) for i, n in enumerate(lengths)]
    return batch, [make_scores(rng, n, **options) for n in lengths]
