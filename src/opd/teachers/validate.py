"""A teacher's answer is checked before anything is trained on it.

Each rule states what a correct answer to exactly this request must satisfy, whatever the model.
Shapes: T completion tokens, K student-chosen ids, K' teacher's own top tokens.
"""

from __future__ import annotations

import numpy as np

from opd.types import SCORE_FIELDS, Rollout, Scores, Want

ABOVE_ZERO = 1e-4  # a log-prob may exceed 0 by rounding only
MASS = 1e-3  # and probabilities may sum to this much more than 1
SAME = 2e-2  # two reports of one log-prob, in nats: bf16 rounds a logit of 4 by as much


class WrongAnswer(ValueError):
    """An answer that cannot be right; says which rule it breaks and where."""


def check(scores: Scores, rollout: Rollout, want: Want, vocab: int) -> None:
    """Refuse a wrong answer.

    Args:
        scores: what the teacher said of `rollout`.
        rollout: what was asked about.
        want: what was asked; everything asked must be there.
        vocab: number of token ids in use.

    Raises:
        WrongAnswer: naming rule, position and values.
    """
    count, arrays = len(rollout), scores.arrays()
    for name in want.fields:
        if name not in arrays:
            raise WrongAnswer(f"{name} was asked for and is missing")
    for name, values in arrays.items():
        width = rollout.topk_ids.shape[1] if name == "support" else want.topk
        shape = (count,) if SCORE_FIELDS[name] == 1 else (count, min(width, vocab))
        if values.shape != shape:
            raise WrongAnswer(f"{name} has shape {values.shape} for {count} tokens, not {shape}")
        if not np.isfinite(values).all():
            raise WrongAnswer(f"{name} is not finite at token {_where(~np.isfinite(values))}")
    if count:
        _check_values(scores, rollout, vocab)


def _check_values(scores: Scores, rollout: Rollout, vocab: int) -> None:
    if scores.sampled is not None:
        _negative("sampled", scores.sampled)
    if scores.topk_ids is not None and scores.topk_logp is not None:
        _check_topk(scores.topk_ids, scores.topk_logp, vocab)
    support = None
    if scores.support is not None and scores.log_z is not None:
        support = scores.support - scores.log_z[:, None]
        _negative("support", support)
        _mass("support", support)
    _agree(scores, rollout, support)
    if scores.entropy is not None:
        _check_entropy(scores, vocab)


def _check_topk(ids: np.ndarray, logp: np.ndarray, vocab: int) -> None:
    if ids.min() < 0 or ids.max() >= vocab:
        bad = (ids < 0) | (ids >= vocab)
        raise WrongAnswer(
            f"top-k names a token outside the {vocab} in use at token {_where(bad)}: another "
            "tokenizer?"
        )
    ordered = np.sort(ids, 1)
    if (twice := ordered[:, 1:] == ordered[:, :-1]).any():
        raise WrongAnswer(f"top-k names one token twice at token {_where(twice)}")
    _negative("top-k", logp)
    if (rising := logp[:, 1:] > logp[:, :-1] + ABOVE_ZERO).any():
        raise WrongAnswer(f"top-k is not sorted at token {_where(rising)}")
    _mass("top-k", logp)


def _agree(scores: Scores, rollout: Rollout, support: np.ndarray | None) -> None:
    """One token's log-prob, told in two places, must be one number."""
    if scores.topk_ids is None or scores.topk_logp is None:
        if scores.sampled is not None and support is not None:
            _same(
                "sampled and support",
                rollout.ids[:, None],
                scores.sampled[:, None],
                rollout.topk_ids,
                support,
            )
        return
    top = (scores.topk_ids, scores.topk_logp)
    if scores.sampled is not None:
        drawn = (rollout.ids[:, None], scores.sampled[:, None])
        _same("sampled and top-k", *drawn, *top)
        _below("the sampled token", *drawn, *top)
    if support is not None:
        _same("support and top-k", rollout.topk_ids, support, *top)
        _below("a support token", rollout.topk_ids, support, *top)


def _same(
    what: str, ids: np.ndarray, logp: np.ndarray, others: np.ndarray, theirs: np.ndarray
) -> None:
    gap = np.abs(logp[:, :, None] - theirs[:, None, :])
    wrong = (ids[:, :, None] == others[:, None, :]) & (gap > SAME)
    if wrong.any():
        t, i, j = np.argwhere(wrong)[0]
        raise WrongAnswer(
            f"{what} disagree at token {t}: {logp[t, i]:.4f} and {theirs[t, j]:.4f} for id "
            f"{ids[t, i]}"
        )


def _below(
    what: str, ids: np.ndarray, logp: np.ndarray, top_ids: np.ndarray, top: np.ndarray
) -> None:
    outside = ~(ids[:, :, None] == top_ids[:, None, :]).any(-1)
    wrong = outside & (logp > top[:, -1:] + SAME)
    if wrong.any():
        raise WrongAnswer(
            f"{what} at token {_where(wrong)} is likelier than the last of the top-k, and not "
            "among them"
        )


def _check_entropy(scores: Scores, vocab: int) -> None:
    assert scores.entropy is not None
    low = np.zeros_like(scores.entropy)
    if scores.topk_logp is not None:
        low = -(np.exp(scores.topk_logp) * scores.topk_logp).sum(1)
    wrong = (scores.entropy < low - SAME) | (scores.entropy > np.log(vocab) + SAME)
    if wrong.any():
        raise WrongAnswer(f"entropy is impossible at token {_where(wrong)}")


def _negative(name: str, logp: np.ndarray) -> None:
    if (wrong := logp > ABOVE_ZERO).any():
        raise WrongAnswer(f"{name} has a log-prob of {logp.max():.4g} > 0 at token {_where(wrong)}")


def _mass(name: str, logp: np.ndarray) -> None:
    mass = np.exp(logp.astype(np.float64)).sum(1)
    if (wrong := mass > 1 + MASS).any():
        raise WrongAnswer(
            f"{name} probabilities sum to {mass.max():.4f} > 1 at token {_where(wrong)}"
        )


def _where(wrong: np.ndarray) -> int:
    return int(np.argwhere(wrong)[0][0])
