"""Checks of a teacher's answer, made before anything is trained on it.

Each rule states what a correct answer to exactly this request must satisfy, whatever the model.
Shapes: T completion tokens, K student-chosen ids, K' teacher's own top tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opd.types import SCORE_FIELDS, Rollout, Scores, Want

ABOVE_ZERO = 1e-4  # by how much rounding may raise a log-prob above 0
MASS = 1e-3  # by how much probabilities may sum to more than 1
SAME = 2e-2  # nats between two values of one log-prob: bf16 rounds a logit of 4 by as much


class WrongAnswer(ValueError):
    """An answer that cannot be right; says which rule it breaks and where."""


class _Tokens(NamedTuple):
    """Log-probs (T, N) of token ids (T, N) at every position, from one part of an answer."""

    name: str
    ids: np.ndarray
    logp: np.ndarray


def check_answer(scores: Scores, rollout: Rollout, want: Want, vocab: int) -> None:
    """Refuse a wrong answer.

    Args:
        scores: the teacher's scores of `rollout`.
        rollout: the scored sequence.
        want: the request; everything in it must be in the answer.
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
            raise WrongAnswer(f"{name} is not finite at token {_first(~np.isfinite(values))}")
    if count:
        _check_values(scores, rollout, vocab)


def _check_values(scores: Scores, rollout: Rollout, vocab: int) -> None:
    sampled = support = topk = None
    if scores.sampled is not None:
        sampled = _Tokens("sampled", rollout.ids[:, None], scores.sampled[:, None])
        _check_logp(sampled)
    if scores.topk_ids is not None and scores.topk_logp is not None:
        topk = _Tokens("top-k", scores.topk_ids, scores.topk_logp)
        _check_topk(topk, vocab)
    if scores.support is not None and scores.log_z is not None:
        logp = scores.support - scores.log_z[:, None]
        support = _Tokens("support", rollout.topk_ids, logp)
        _check_logp(support)
        _check_mass(support)
    if topk is None and sampled is not None and support is not None:
        _check_equal(sampled, support)
    for tokens in (sampled, support):
        if topk is not None and tokens is not None:
            _check_equal(tokens, topk)
            _check_below(tokens, topk)
    if scores.entropy is not None:
        _check_entropy(scores.entropy, scores.topk_logp, vocab)


def _check_topk(topk: _Tokens, vocab: int) -> None:
    if (outside := (topk.ids < 0) | (topk.ids >= vocab)).any():
        raise WrongAnswer(
            f"top-k names a token outside the {vocab} in use at token {_first(outside)}: another "
            "tokenizer?"
        )
    ordered = np.sort(topk.ids, 1)
    if (repeated := ordered[:, 1:] == ordered[:, :-1]).any():
        raise WrongAnswer(f"top-k names one token twice at token {_first(repeated)}")
    _check_logp(topk)
    if (rising := topk.logp[:, 1:] > topk.logp[:, :-1] + ABOVE_ZERO).any():
        raise WrongAnswer(f"top-k is not sorted at token {_first(rising)}")
    _check_mass(topk)


def _check_equal(a: _Tokens, b: _Tokens) -> None:
    """The log-prob of one token must be the same in both parts of an answer."""
    difference = np.abs(a.logp[:, :, None] - b.logp[:, None, :])
    wrong = (a.ids[:, :, None] == b.ids[:, None, :]) & (difference > SAME)
    if wrong.any():
        t, i, j = np.argwhere(wrong)[0]
        raise WrongAnswer(
            f"{a.name} and {b.name} disagree at token {t}: {a.logp[t, i]:.4f} and "
            f"{b.logp[t, j]:.4f} for id {a.ids[t, i]}"
        )


def _check_below(tokens: _Tokens, topk: _Tokens) -> None:
    """A token that is not among the top k is not more likely than the last of them."""
    outside = ~(tokens.ids[:, :, None] == topk.ids[:, None, :]).any(-1)
    wrong = outside & (tokens.logp > topk.logp[:, -1:] + SAME)
    if wrong.any():
        raise WrongAnswer(
            f"a {tokens.name} token is likelier than the last of the top-k at token "
            f"{_first(wrong)}, and not among them"
        )


def _check_entropy(entropy: np.ndarray, topk_logp: np.ndarray | None, vocab: int) -> None:
    """Entropy is at least the top k's part of it, and at most that of the uniform distribution."""
    low = np.zeros_like(entropy)
    if topk_logp is not None:
        low = -(np.exp(topk_logp) * topk_logp).sum(1)
    wrong = (entropy < low - SAME) | (entropy > np.log(vocab) + SAME)
    if wrong.any():
        raise WrongAnswer(f"entropy is impossible at token {_first(wrong)}")


def _check_logp(tokens: _Tokens) -> None:
    if (wrong := tokens.logp > ABOVE_ZERO).any():
        raise WrongAnswer(
            f"{tokens.name} has a log-prob of {tokens.logp.max():.4g} > 0 at token {_first(wrong)}"
        )


def _check_mass(tokens: _Tokens) -> None:
    mass = np.exp(tokens.logp.astype(np.float64)).sum(1)
    if (wrong := mass > 1 + MASS).any():
        raise WrongAnswer(
            f"{tokens.name} probabilities sum to {mass.max():.4f} > 1 at token {_first(wrong)}"
        )


def _first(wrong: np.ndarray) -> int:
    """Index of the first position at which something is wrong."""
    return int(np.argwhere(wrong)[0][0])
