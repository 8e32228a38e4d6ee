"""Fifteen wrong teachers that the list of forty did not have: what a second look tried."""

from __future__ import annotations

import numpy as np

from opd.testing import LETTER_VOCAB
from support.lies import HONEST, OTHER, Lie, State, normalise


def beginning_only(size: int) -> Lie:
    """Beyond `size` tokens nothing new is seen."""

    def lie(state: State, ids: list[int]) -> np.ndarray:
        logp = HONEST(ids).copy()
        for t in range(size, len(ids)):
            logp[t] = HONEST([*ids[:size], ids[t]])[-1]
        return logp

    return lie


def every_second_pair_swapped(state: State, ids: list[int]) -> np.ndarray:
    logp = HONEST(ids).copy()
    for t in range(0, len(ids) - 1, 2):
        logp[[t, t + 1]] = logp[[t + 1, t]]
    return logp


def last_repeats(state: State, ids: list[int]) -> np.ndarray:
    """The last position has the scores of the one before."""
    logp = HONEST(ids).copy()
    logp[-2:-1] = logp[-3:-2] if len(ids) > 2 else logp[-2:-1]
    return logp


def top_only(state: State, ids: list[int]) -> np.ndarray:
    """What sampling with top_k=8 leaves: the others are all but impossible."""
    logp = HONEST(ids).copy()
    worst = np.argsort(logp, 1)[:, :-8]
    np.put_along_axis(logp, worst, -30.0, 1)
    return normalise(logp)


def clipped(state: State, ids: list[int]) -> np.ndarray:
    return np.maximum(HONEST(ids), -4.0)


def too_large(state: State, ids: list[int]) -> np.ndarray:
    return np.minimum(HONEST(ids) + 0.2, 0.0)


def stepped(state: State, ids: list[int]) -> np.ndarray:
    return np.round(HONEST(ids) * 4) / 4


def repeats_collapsed(state: State, ids: list[int]) -> np.ndarray:
    """A token twice in a row counts once."""
    rows = []
    for t in range(len(ids)):
        kept = [x for i, x in enumerate(ids[: t + 1]) if i == 0 or x != ids[i - 1]]
        rows.append(HONEST(kept)[-1])
    return np.stack(rows)


def late_shift(state: State, ids: list[int]) -> np.ndarray:
    """Right up to the twelfth token, then one position too late."""
    logp = HONEST(ids).copy()
    logp[12:] = np.roll(logp[12:], 1, 0) if len(ids) > 13 else logp[12:]
    return logp


def long_by_another(state: State, ids: list[int]) -> np.ndarray:
    """Sequences of twenty tokens and more go to another model."""
    return OTHER(ids) if len(ids) >= 20 else HONEST(ids)


def warmer_with_length(state: State, ids: list[int]) -> np.ndarray:
    return normalise(HONEST(ids) / (1 + 0.05 * np.arange(len(ids)))[:, None])


def answer_of_before(state: State, ids: list[int]) -> np.ndarray:
    """Every tenth request gets what was asked ten requests before."""
    if state.calls % 10 == 0 and len(state.earlier) >= 10:
        other = HONEST(state.earlier[-10])
        return other[np.arange(len(ids)) % len(other)]
    return HONEST(ids)


def half_zero(state: State, ids: list[int]) -> np.ndarray:
    """The second half of a sequence was never computed."""
    logp = HONEST(ids).copy()
    logp[len(ids) // 2 :] = -np.log(LETTER_VOCAB)
    return logp


def greedy(state: State, ids: list[int]) -> np.ndarray:
    logp = np.full((len(ids), LETTER_VOCAB), -20.0)
    logp[np.arange(len(ids)), HONEST(ids).argmax(1)] = 0.0
    return normalise(logp)


def blended_rows(state: State, ids: list[int]) -> np.ndarray:
    """A part of the row before leaks into each."""
    if not state.earlier:
        return HONEST(ids)
    other = HONEST(state.earlier[-1])
    return np.log(0.7 * np.exp(HONEST(ids)) + 0.3 * np.exp(other[np.arange(len(ids)) % len(other)]))


MORE_LIES: dict[str, Lie] = {
    "context cut to the first 8": beginning_only(8),
    "every second pair of positions swapped": every_second_pair_swapped,
    "the last position repeats the one before": last_repeats,
    "only the best 8 tokens": top_only,
    "log-probs clipped at -4": clipped,
    "log-probs too large by 0.2": too_large,
    "log-probs in steps of a quarter": stepped,
    "repeated tokens collapsed": repeats_collapsed,
    "shifted after the twelfth token": late_shift,
    "long sequences by another model": long_by_another,
    "warmer with every token": warmer_with_length,
    "every tenth answer is an earlier one": answer_of_before,
    "second half not computed": half_zero,
    "only the best token": greedy,
    "a third of another row in each": blended_rows,
}
# From the first request on these are functions of the tokens alone that no probe tells apart from
# a model; docs/teacher-checks.md names them.
NOT_PROBED = {"context cut to the first 8", "only the best 8 tokens", "warmer with every token"}
# Wrong where a token comes twice in a row alone: seen only if such a sequence is asked again.
RARE = {"repeated tokens collapsed"}
