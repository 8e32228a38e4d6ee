"""Rollouts of a run with the teacher's advantage of every token.

Exact where the teacher's scores over the whole vocabulary are on disk: `Scores.view` of the
rollouts that stay in the run folder, or what the loss asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from opd.reports.read import RunData
from opd.types import Rollout, Scores

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout with the teacher's advantage of every token.

    Attributes:
        step: at which it was sampled.
        rollout: the sampled tokens.
        scores: of the teacher.
        text: of the completion.
        advantage: log q - log p in nats, (T,); NaN where it is unknown.
        exact: whether it is over the whole vocabulary, not renormalised on the top k.
        teacher_mass: the teacher's probability on the student's top k, (T,); None if unknown.
        on_support: `advantage` with both renormalised on the student's top k, as the default loss
            compares them, (T,); None without the teacher's scores there.
    """

    step: int
    rollout: Rollout
    scores: Scores
    text: str
    advantage: Floats
    exact: bool
    teacher_mass: Floats | None
    on_support: Floats | None

    @property
    def mean(self) -> float:
        """Mean advantage over the tokens where it is known; NaN without any."""
        known = self.advantage[np.isfinite(self.advantage)]
        return float(known.mean()) if len(known) else float("nan")


def scored_rollouts(run: RunData, step: int) -> list[ScoredRollout]:
    """The rollouts of a step with their advantages; none without scores of the teacher.

    Args:
        run: the run.
        step: from 1.
    """
    file = run.rollout_file(step)
    if file is None:
        return []
    texts = file.texts or [""] * len(file.batch)
    rows = zip(file.batch, file.scores, texts, strict=True)
    scored = (_scored(step, *row) for row in rows if len(row[0]))
    return [each for each in scored if each is not None]


def _scored(step: int, rollout: Rollout, scores: Scores, text: str) -> ScoredRollout | None:
    whole, on_support = whole_vocabulary(scores), None
    if scores.support is not None:
        on_support = advantages_on_support(rollout, scores.support)
    advantage = on_support
    if whole is not None and whole.sampled is not None:
        advantage = whole.sampled.astype(np.float64) - rollout.logp.astype(np.float64)
    if advantage is None:
        return None
    is_exact = whole is not None
    return ScoredRollout(
        step, rollout, scores, text, advantage, is_exact, teacher_mass(scores), on_support
    )


def whole_vocabulary(scores: Scores) -> Scores | None:
    """The part of a teacher's scores with normalised log-probs; None without any."""
    parts = (scores.view, scores)
    return next((s for s in parts if s is not None and s.sampled is not None), None)


def teacher_mass(scores: Scores) -> Floats | None:
    """The teacher's probability on the student's top k, (T,); None without its normaliser."""
    log_z = scores.log_z if scores.view is None else scores.view.log_z
    if scores.support is None or log_z is None:
        return None
    logq = scores.support.astype(np.float64) - log_z.astype(np.float64)[:, None]
    mass: Floats = np.exp(logq).sum(1).clip(max=1.0)
    return mass


def advantages_on_support(rollout: Rollout, support: NDArray[Any]) -> Floats:
    """The log q q - log p of each token, (T,), both renormalised on the student's top k.

    What the default loss compares; NaN for a token that is not among them.

    Args:
        rollout: the sampled tokens.
        support: the teacher's log-scores of its `topk_ids`, (T, K).
    """
    p, q = renormalised(rollout.topk_logp), renormalised(support)
    is_sampled = rollout.topk_ids == rollout.ids[:, None]
    difference = np.where(is_sampled, q - p, 0.0).sum(1)
    advantage: Floats = np.where(is_sampled.any(1), difference, np.nan)
    return advantage


def renormalised(scores: NDArray[Any]) -> Floats:
    """Log-scores (T, K) as log-probabilities over K, (T, K) in float64."""
    logp: Floats = log_softmax(scores.astype(np.float64), axis=1)
    return logp
