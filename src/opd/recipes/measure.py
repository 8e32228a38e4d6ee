"""The overlap metrics of saved rollouts: the paper's, the published code's and verl's, by name.

`opd.run.rollouts.read_step` reads what a step wrote to disk. Where its scores hold the teacher's
own top tokens nothing else is needed; otherwise any teacher can score the rollouts.
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
    """Overlap ratio, Eq. 7 advantage and masses of rollouts, over all completion tokens.

    The student's top tokens are those the sampler recorded (at the sampling temperature), so the
    student itself is not needed.

    Args:
        rollouts: with at least k recorded top tokens per position; empty ones are left out.
        scores: of a teacher, one per rollout; used if they hold at least k of its top tokens.
        teacher: scores the rollouts otherwise.
        k: support size (paper: 16).

    Returns:
        The names of `opd.run.metric_names.OVERLAP` as exact means.

    Raises:
        ValueError: too few recorded tokens, or top tokens missing and no teacher to score with.
    """
    kept = [i for i, r in enumerate(rollouts) if len(r)]
    nonempty = [rollouts[i] for i in kept]
    if min((r.topk_ids.shape[1] for r in nonempty), default=0) < k:
        raise ValueError(f"the rollouts hold fewer than k={k} of the student's tokens per position")
    recorded = [scores[i] for i in kept] if scores is not None else []
    if not recorded or any(s.topk_ids is None or s.topk_ids.shape[1] < k for s in recorded):
        if teacher is None:
            raise ValueError(f"no top-{k} tokens of a teacher on disk, and no teacher to ask")
        recorded = teacher.score(nonempty, Want(topk=k))
    student = tops([(r.topk_ids, r.topk_logp) for r in nonempty], k)
    return diagnostics.overall(
        diagnostics.overlap_metrics(student, tops([(s.topk_ids, s.topk_logp) for s in recorded], k))
    )


def tops(lists: Sequence[tuple[np.ndarray | None, np.ndarray | None]], k: int) -> TopK:
    """Top-k lists of several rollouts as one, positions in order.

    Args:
        lists: per rollout, ids and log-probs of at least k tokens per position.
        k: tokens to keep per position.
    """
    ids = np.concatenate([i[:, :k] for i, _ in lists if i is not None])
    logp = np.concatenate([p[:, :k] for _, p in lists if p is not None])
    return TopK(torch.from_numpy(ids).long(), torch.from_numpy(logp))
