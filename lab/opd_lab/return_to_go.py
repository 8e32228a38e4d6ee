"""Advantages of the published code that the product does not have: group z-scores, return-to-go.

The reward of a token is log q - log p. The product's `loss.support=sampled` takes it as the
advantage of its own token (`token_reward_direct`). `token_grpo` subtracts the mean of all tokens
of the prompt's group, divides by their standard deviation and sums from each token to the end.
Both are made here by a teacher around the teacher, whose log q is log p plus that advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from opd.training.session import Session
from opd.types import Kind, Rollout, Scores, Teacher, Want

EPSILON = 1e-6


@dataclass
class AdvantageTeacher:
    """A teacher whose score of each sampled token makes a given advantage of it.

    Attributes:
        name: see `opd.types.Teacher`.
        kinds: see `opd.types.Teacher`.
        teacher: whose rewards these are.
        to_go: sum from each token to the end of its rollout.
    """

    name: str
    kinds: frozenset[Kind]
    teacher: Teacher
    to_go: bool

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher`."""
        scores = self.teacher.score(rollouts, want)
        if not want.sampled:
            return scores
        sampled = [s.sampled for s in scores]
        made = advantages(rollouts, [s for s in sampled if s is not None], to_go=self.to_go)
        return [
            replace(s, sampled=(r.logp + a).astype(np.float32))
            for s, r, a in zip(scores, rollouts, made, strict=True)
        ]


def advantages(
    rollouts: Sequence[Rollout], sampled: Sequence[np.ndarray], *, to_go: bool
) -> list[np.ndarray]:
    """Advantage of each token, (T,) per rollout.

    Args:
        rollouts: of whole groups; a group is what answers one prompt.
        sampled: (T,) log q of their tokens.
        to_go: whether z-scores are summed from each token to the end.
    """
    rewards = [q - r.logp for r, q in zip(rollouts, sampled, strict=True)]
    groups: dict[int, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        groups.setdefault(rollout.prompt.index, []).append(i)
    made = list(rewards)
    for members in groups.values():
        together = np.concatenate([rewards[i] for i in members])
        mean, deviation = together.mean(), together.std() + EPSILON
        for i in members:
            z = (rewards[i] - mean) / deviation
            made[i] = z[::-1].cumsum()[::-1] if to_go else z
    return made


def with_return_to_go(session: Session) -> Session:
    """The session of a run with the advantages of `token_grpo`."""
    return _with_teacher(session, to_go=True)


def with_group_scores(session: Session) -> Session:
    """The same without the sum: z-scores of immediate rewards."""
    return _with_teacher(session, to_go=False)


def _with_teacher(session: Session, *, to_go: bool) -> Session:
    source, teacher = session.source, session.source.teacher
    assert teacher is not None
    changed = AdvantageTeacher(teacher.name, teacher.kinds, teacher, to_go)
    return replace(session, source=replace(source, teacher=changed))
