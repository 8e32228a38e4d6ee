"""A teacher without a model: scores from a function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from opd.models.lm import LM
from opd.teachers.remote import replace_full, set_positions
from opd.testing.language import NextLogp, completion_logp, model_logp
from opd.types import Kind, Rollout, Scores, Want


class FakeTeacher:
    """`opd.types.Teacher` that scores with given next-token log-probs; it cannot return `FULL`.

    Attributes:
        scored: number of rollouts scored so far.
    """

    def __init__(
        self,
        logp: NextLogp,
        *,
        name: str = "fake",
        kinds: Iterable[Kind] = (Kind.SAMPLED, Kind.SUPPORT, Kind.TOPK),
    ) -> None:
        """Make a teacher.

        Args:
            logp: next-token log-probs.
            name: name of the teacher.
            kinds: what a loss may ask of it.
        """
        self.logp, self.name, self.kinds = logp, name, frozenset(kinds)
        self.scored = 0

    @classmethod
    def of_model(cls, lm: LM) -> FakeTeacher:
        """A teacher with the scores of a model, one forward per rollout."""
        return cls(model_logp(lm), name=lm.name)

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`; `want.full` sets positions alone."""
        self.scored += len(rollouts)
        request = replace_full(want, 0)
        return set_positions([self._score_one(r, request) for r in rollouts], want)

    def _score_one(self, rollout: Rollout, want: Want) -> Scores:
        return compute_scores(completion_logp(self.logp, rollout), rollout, want)


def compute_scores(logp: np.ndarray, rollout: Rollout, want: Want) -> Scores:
    """Scores of one rollout from log-probs (T, V) at its completion positions."""
    arrays: dict[str, Any] = {}
    if want.sampled:
        arrays["sampled"] = np.take_along_axis(logp, rollout.ids[:, None].astype(int), 1)[:, 0]
        arrays["entropy"] = -(np.exp(logp) * logp).sum(1)
    if want.support:
        arrays["support"] = np.take_along_axis(logp, rollout.topk_ids.astype(int), 1)
        arrays["log_z"] = np.zeros(len(rollout))
    if want.topk:
        best = np.argsort(-logp, 1, kind="stable")[:, : want.topk]
        arrays["topk_ids"] = best.astype(np.int32)
        arrays["topk_logp"] = np.take_along_axis(logp, best, 1)
    return Scores(**arrays)
