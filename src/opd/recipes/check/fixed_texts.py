"""Texts on which a student is measured before and after some steps: the same ones every time.

Nothing is sampled, so two measurements differ by the student alone. Shapes: R student rollouts, M
teacher samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opd.core.chunked import chunk_slices
from opd.core.distributions import DenseDistribution
from opd.core.losses import reverse_kl, with_tail
from opd.models.lm import LM
from opd.recipes.check.probe import StudentSide, TeacherSide
from opd.rng import Stream, generator
from opd.teachers.local import LocalTeacher
from opd.types import Rollout, Scores, Want

MAX_POSITIONS = 4096  # of all rollouts, at which the whole distributions are compared


@dataclass(frozen=True)
class FixedTexts:
    """What every measurement looks at.

    Attributes:
        rollouts: R of the student before the steps, grouped by prompt.
        samples: M of the teacher; empty if it cannot generate.
        positions: of each rollout, completion positions at which distributions are compared.
        teacher_hidden: of each rollout, the teacher's hidden states there; None for a server.
        teacher: in this process; None for a server.
        tokens_per_batch: padded tokens per forward pass.
        teacher_tops: of each rollout, a server's scores with its own top k; None without them.
    """

    rollouts: Sequence[Rollout]
    samples: Sequence[Rollout]
    positions: Sequence[np.ndarray]
    teacher_hidden: Sequence[Tensor] | None
    teacher: LM | None
    tokens_per_batch: int
    teacher_tops: Sequence[Scores] | None = None


@dataclass(frozen=True)
class Reading:
    """What a student says about the fixed texts.

    Attributes:
        rollouts: (R,) log p of each rollout, nats.
        samples: (M,) log p of each of the teacher's samples.
        kl: (R,) sum of reverse KL over the positions of a rollout: of whole distributions; for a
            server of its own top k and everything else together, which is at most as large. None
            for one that gives no top k.
    """

    rollouts: np.ndarray
    samples: np.ndarray
    kl: np.ndarray | None


def fix_texts(
    student: StudentSide,
    teacher_side: TeacherSide,
    teacher: LM | None,
    *,
    tokens_per_batch: int,
    seed: int,
) -> FixedTexts:
    """Choose positions, and let the teacher look at them once.

    Args:
        student: the student's half of the probe.
        teacher_side: the teacher's.
        teacher: in this process; None for a server.
        tokens_per_batch: padded tokens per forward pass.
        seed: of the positions.
    """
    rollouts = student.rollouts
    positions = _choose_positions([len(r) for r in rollouts], seed)
    hidden = None
    if teacher is not None:
        scorer = LocalTeacher(teacher, tokens_per_batch=tokens_per_batch)
        scores = scorer.score(rollouts, Want(full=positions))
        hidden = [s.hidden for s in scores if s.hidden is not None]
    tops = None
    if hidden is None and teacher_side.scores and teacher_side.scores[0].topk_ids is not None:
        tops = teacher_side.scores
    return FixedTexts(
        rollouts, teacher_side.samples, positions, hidden, teacher, tokens_per_batch, tops
    )


def _choose_positions(lengths: Sequence[int], seed: int) -> list[np.ndarray]:
    """At most `MAX_POSITIONS` of all completion positions, by rollout, in order."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    index = np.concatenate([np.arange(n) for n in lengths])
    count = min(MAX_POSITIONS, len(owner))
    rng = generator(seed, Stream.CHECK, len(lengths))
    chosen = np.sort(rng.choice(len(owner), count, replace=False))
    return [index[chosen[owner[chosen] == i]] for i in range(len(lengths))]


@torch.no_grad()
def read(student: LM, texts: FixedTexts) -> Reading:
    """Measure a student on the fixed texts, at temperature 1."""
    scorer = LocalTeacher(student, tokens_per_batch=texts.tokens_per_batch)
    full = None if texts.teacher_hidden is None else texts.positions
    tops, rollouts = texts.teacher_tops, texts.rollouts
    if tops is not None:  # the student's log-probs of the teacher's tokens
        rollouts = [_with_tops(r, s) for r, s in zip(rollouts, tops, strict=True)]
    scores = scorer.score(rollouts, Want(sampled=True, support=tops is not None, full=full))
    samples = scorer.score(texts.samples, Want(sampled=True)) if texts.samples else []
    kl = None
    if tops is not None:
        kl = np.array([_top_kl_sum(*x) for x in zip(scores, tops, texts.positions, strict=True)])
    elif full is not None:
        kl = _kl_sums(student, texts, [s.hidden for s in scores])
    return Reading(
        np.array([_sum(s.sampled) for s in scores]),
        np.array([_sum(s.sampled) for s in samples]),
        kl,
    )


def _with_tops(rollout: Rollout, teacher: Scores) -> Rollout:
    assert teacher.topk_ids is not None
    return replace(rollout, topk_ids=teacher.topk_ids)


def _top_kl_sum(student: Scores, teacher: Scores, positions: np.ndarray) -> float:
    """Sum of KL(student || teacher) over positions of a rollout: the teacher's top k and a rest."""
    assert student.support is not None
    assert student.log_z is not None
    assert teacher.topk_logp is not None
    p, q = student.support - student.log_z[:, None], teacher.topk_logp
    ours, theirs = (with_tail(torch.from_numpy(x[positions])) for x in (p, q))
    return float(reverse_kl(ours, theirs).double().sum())


def _sum(logp: np.ndarray | None) -> float:
    assert logp is not None
    return float(logp.sum(dtype=np.float64))


def _kl_sums(student: LM, texts: FixedTexts, hidden: Sequence[Tensor | None]) -> np.ndarray:
    """(R,) sum of KL(student || teacher) over each rollout's positions, from hidden states."""
    assert texts.teacher is not None
    assert texts.teacher_hidden is not None
    ours = torch.cat([h for h in hidden if h is not None]).to(student.device)
    theirs = torch.cat(list(texts.teacher_hidden)).to(texts.teacher.device)
    values = []
    for part in chunk_slices(len(ours), 2 * student.vocab, ours.device):
        p = DenseDistribution(student.head.logits(ours[part])).log_probs()
        q = DenseDistribution(texts.teacher.head.logits(theirs[part])).log_probs()
        values.append(reverse_kl(p, q.to(p.device)).double().cpu().numpy())
    rollout = np.repeat(np.arange(len(hidden)), [len(at) for at in texts.positions])
    sums: np.ndarray = np.bincount(rollout, np.concatenate(values), len(hidden))
    return sums
