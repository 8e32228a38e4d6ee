"""The overlap family from saved rollouts: the paper's, the published code's and verl's, by name.

`opd.run.rollouts.read_step` gives back what a step left on disk. Where its scores hold the
teacher's own top tokens nothing else is needed; else any teacher is asked for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from opd.core import diagnostics
from opd.core.diagnostics import TopK
from opd.types import Metrics, Rollout, Scores, Teacher, Want


def measure(
    rollouts: Sequence[Rollout],
    scores: Sequence[Scores] | None = None,
    *,
    teacher: Teacher | None = None,
    k: int = 16,
) -> Metrics:
    """Overlap ratio, Eq. 7, masses, and their namesakes elsewhere, over all completion tokens.

    The student's side is what the sampler recorded (at the sampling temperature), so the student
    itself is not needed.

    Args:
        rollouts: with at least k recorded tokens a position.
        scores: what a teacher said of them; used where it holds at least k of its top tokens.
        teacher: asked where `scores` does not.
        k: support size (paper: 16).

    Returns:
        The names of `opd.run.metric_names.OVERLAP` as exact means.

    Raises:
        ValueError: too few recorded tokens, or top tokens missing and no teacher to ask.
    """
    kept = [i for i, r in enumerate(rollouts) if len(r)]
    chosen = [rollouts[i] for i in kept]
    if min((r.topk_ids.shape[1] for r in chosen), default=0) < k:
        raise ValueError(f"the rollouts hold fewer than k={k} of the student's tokens a position")
    given = [scores[i] for i in kept] if scores is not None else []
    if not given or any(s.topk_ids is None or s.topk_ids.shape[1] < k for s in given):
        if teacher is None:
            raise ValueError(f"no top-{k} tokens of a teacher on disk, and no teacher to ask")
        given = teacher.score(chosen, Want(topk=k))
    student = tops([(r.topk_ids, r.topk_logp) for r in chosen], k)
    return diagnostics.overall(
        diagnostics.overlap_metrics(student, tops([(s.topk_ids, s.topk_logp) for s in given], k))
    )


def tops(lists: Sequence[tuple[np.ndarray | None, np.ndarray | None]], k: int) -> TopK:
    """Top-k lists of several rollouts as one, positions in order."""
    ids = np.concatenate([i[:, :k] for i, _ in lists if i is not None])
    logp = np.concatenate([p[:, :k] for _, p in lists if p is not None])
    return TopK(torch.from_numpy(ids).long(), torch.from_numpy(logp))
