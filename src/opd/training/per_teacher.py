"""What is said of each of several teachers: a mean over all would hide the one that fails."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from opd.core.batch import Batch, MicroBatch
from opd.types import Mean, Metrics, Rollout

DIAGNOSED = (
    "diag/reverse_kl",
    "diag/overlap_ratio",
    "diag/top1_agreement",
    "diag/overlap_mass_student",
    "diag/support_mass",
    "diag/loss_teacher_mass",
    "diag/entropy_gap_abs",
    "diag/student_entropy",
    "diag/teacher_entropy",
    "diag/token_reward",
)


def of_teacher(micro: MicroBatch, total: Tensor, diagnosis: Metrics) -> Metrics:
    """Loss and diagnostics of a micro-batch under its teacher's name; nothing for one teacher.

    Args:
        micro: of one teacher's rollouts.
        total: its summed loss.
        diagnosis: of its positions.
    """
    if micro.teacher_name is None:
        return {}
    weight = float(micro.tokens.weight.sum())
    values = {n: diagnosis[n] for n in DIAGNOSED if n in diagnosis}
    values["train/loss"] = Mean(float(total.detach()), weight)
    return {f"teachers/{micro.teacher_name}/{name}": value for name, value in values.items()}


def split_by_teacher(batch: Batch) -> dict[str, Batch]:
    """The rollouts of each teacher with their rewards, for metrics of rollouts."""
    assert batch.teachers is not None
    parts = {}
    for name in dict.fromkeys(batch.teachers):
        rows = [i for i, teacher in enumerate(batch.teachers) if teacher == name]
        rewards = None if batch.rewards is None else batch.rewards[rows]
        scores = None if batch.scores is None else [batch.scores[i] for i in rows]
        parts[name] = Batch([batch.rollouts[i] for i in rows], scores, rewards=rewards)
    return parts


def equalise_tokens(
    rollouts: Sequence[Rollout], names: Sequence[str], weights: list[np.ndarray] | None
) -> list[np.ndarray]:
    """Token weights (T,) with which each teacher's tokens together count as its rollouts do.

    The loss, a mean over all N tokens, becomes the sum over teachers of their fraction of the
    rollouts times their own mean: a teacher of long answers takes no more of it.

    Args:
        rollouts: of a step.
        names: of the teacher of each.
        weights: to be multiplied; None: 1.
    """
    tokens: dict[str, int] = {}
    for rollout, name in zip(rollouts, names, strict=True):
        tokens[name] = tokens.get(name, 0) + len(rollout)
    total = sum(tokens.values())
    factors = {
        name: names.count(name) / len(names) * total / count if count else 0.0
        for name, count in tokens.items()
    }
    plain = weights or [np.ones(len(r), dtype=np.float32) for r in rollouts]
    return [w * np.float32(factors[name]) for w, name in zip(plain, names, strict=True)]
