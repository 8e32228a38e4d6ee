"""How far held-out answers of the student are from the teacher: one number for each of a few."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opd.config import Run
from opd.models.fsdp import unsharded
from opd.models.lm import LM
from opd.teachers.local import LocalTeacher
from opd.training.distributed import SINGLE, Ranks, ShardedTeacher
from opd.types import Rollout, Teacher, Want

MEASURED = 256  # answers of a set, the first sample of each prompt: two forward passes of each
Measure = Callable[[Sequence[Rollout]], dict[int, float]]


def answer_kl(
    cfg: Run, student: LM, teacher: Teacher | None, ranks: Ranks = SINGLE
) -> Measure | None:
    """What measures the student's answers; None unless the teacher is a plain one in this process.

    A teacher behind a server may be paid for, and one with a prompt or a tokenizer of its own knows
    the training prompts alone.

    Args:
        cfg: the run.
        student: the model that is trained.
        teacher: of the run, not yet divided among processes.
        ranks: the processes that share the work.
    """
    if not isinstance(teacher, LocalTeacher) or getattr(cfg.teacher, "prompt", None) is not None:
        return None
    if teacher.temperature != 1.0:
        return None
    local = LocalTeacher(student, tokens_per_batch=teacher.tokens_per_batch)
    own, other = (ShardedTeacher(m, ranks) if ranks.size > 1 else m for m in (local, teacher))

    def measure(rollouts: Sequence[Rollout]) -> dict[int, float]:
        with unsharded(student):
            return sampled_kl(own, other, rollouts)

    return measure


def sampled_kl(student: Teacher, teacher: Teacher, rollouts: Sequence[Rollout]) -> dict[int, float]:
    """Mean of log p - log q over the sampled tokens of some rollouts, by position in `rollouts`.

    Args:
        student: scores with the student, at temperature 1.
        teacher: scores with the teacher, at temperature 1.
        rollouts: of which the first sample of each prompt counts, `MEASURED` at most.

    Returns:
        Nats per token: an estimate of the reverse KL from one completion, which can be negative.
    """
    chosen = [i for i, r in enumerate(rollouts) if r.sample == 0][:MEASURED]
    subset = [rollouts[i] for i in chosen]
    values: dict[int, float] = {}
    pairs = (model.score(subset, Want(sampled=True)) for model in (student, teacher))
    for i, p, q in zip(chosen, *pairs, strict=True):
        assert p.sampled is not None
        assert q.sampled is not None
        mean = float(np.mean(p.sampled.astype(np.float64) - q.sampled.astype(np.float64)))
        if np.isfinite(mean):
            values[i] = round(mean, 6)
    return values
