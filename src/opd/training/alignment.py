"""Weights and metrics of completions that a teacher of another tokenizer has scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd.core.alignment import LEFT_OUT
from opd.types import Mean, Metrics, Rollout, Scores


def leave_out_unaligned(
    rollouts: Sequence[Rollout], scores: Sequence[Scores], weights: list[np.ndarray] | None
) -> list[np.ndarray] | None:
    """Token weights (T,): 0 where the teacher could not be compared; unchanged for one tokenizer.

    Args:
        rollouts: of a step.
        scores: of each.
        weights: to be multiplied; None: 1.
    """
    if not any(s.chunk is not None for s in scores):
        return weights
    plain = weights or [np.ones(len(r), dtype=np.float32) for r in rollouts]
    return [
        w if s.chunk is None else w * (s.chunk != LEFT_OUT)
        for w, s in zip(plain, scores, strict=True)
    ]


def alignment_metrics(rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> Metrics:
    """How the two tokenizations fit, and the chunks' advantage; nothing for one tokenizer."""
    known = [(r, s) for r, s in zip(rollouts, scores, strict=False) if s.chunk is not None]
    if not known:
        return {}
    tokens = sum(len(r) for r, _ in known)
    shared = inside = chunks = 0
    advantage = 0.0
    for rollout, score in known:
        assert score.chunk is not None
        assert score.sampled is not None
        numbers, first = np.unique(score.chunk, return_index=True)
        first = first[numbers != LEFT_OUT]
        chunks += len(first)
        inside += int((score.chunk != LEFT_OUT).sum())
        shared += 0 if score.shared is None else int(score.shared.any(1).sum())
        difference = score.sampled.astype(np.float64) - rollout.logp
        advantage += float(difference[first].sum())
    return {
        "align/shared": Mean(shared, tokens),
        "align/left_out": Mean(tokens - inside, tokens),
        "align/chunk_length": Mean(inside, chunks),
        "align/advantage": Mean(advantage, inside),
    }
