"""Twenty wrong teachers that neither the forty nor the fifteen were: what a third look tried."""

from __future__ import annotations

import numpy as np

from opd.testing import LETTER_VOCAB
from support.lies import HONEST, OTHER, Lie, State, fitted, normalise, previous_row, sometimes

HALF = LETTER_VOCAB // 2


def others_shuffled(state: State, ids: list[int]) -> np.ndarray:
    """Each token that follows has its own score; those of all others are mixed up."""
    logp = HONEST(ids).copy()
    for t, token in enumerate(ids[1:]):
        rest = [v for v in range(LETTER_VOCAB) if v != token]
        logp[t, rest] = state.rng.permutation(logp[t, rest])
    return logp


def tail_doubled(state: State, ids: list[int]) -> np.ndarray:
    """The best four are right; the others have twice their probability: the sum is above 1."""
    logp = HONEST(ids).copy()
    worst = np.argsort(logp, 1)[:, :-4]
    np.put_along_axis(logp, worst, np.take_along_axis(logp, worst, 1) + np.log(2), 1)
    return logp


def long_rows_warmer(state: State, ids: list[int]) -> np.ndarray:
    return normalise(HONEST(ids) / 1.3) if len(ids) >= 24 else HONEST(ids)


def upper_ids_off_by_one(state: State, ids: list[int]) -> np.ndarray:
    """Ids of the upper half are those of the next token, read and answered."""
    order = np.arange(LETTER_VOCAB)
    order[HALF:] = np.roll(order[HALF:], 1)
    return HONEST([int(order[i]) for i in ids])[:, order]


def upper_scores_off_by_one(state: State, ids: list[int]) -> np.ndarray:
    """Likewise, but what is asked is read rightly."""
    logp = HONEST(ids).copy()
    logp[:, HALF:] = np.roll(logp[:, HALF:], 1, 1)
    return logp


def then_stale(size: int) -> Lie:
    """Right for the first `size` positions, then those of the row before."""

    def lie(state: State, ids: list[int]) -> np.ndarray:
        logp = HONEST(ids).copy()
        if state.earlier:
            logp[size:] = fitted(HONEST(state.earlier[-1]), len(ids))[size:]
        return logp

    return lie


def every_fiftieth(state: State, ids: list[int]) -> np.ndarray:
    return previous_row(state, ids) if state.calls % 50 == 49 else HONEST(ids)


def logits_below_zero(state: State, ids: list[int]) -> np.ndarray:
    """Before the softmax, each position with an offset of its own."""
    return HONEST(ids) - 2 - 0.5 * np.cos(np.cumsum(ids))[:, None]


def padded_in_front(state: State, ids: list[int]) -> np.ndarray:
    """Filled up to a multiple of 8 in front, without a mask."""
    pad = -len(ids) % 8
    return HONEST([0] * pad + ids)[pad:]


def next_leaks(state: State, ids: list[int]) -> np.ndarray:
    """A causal mask that is off by one: the next token is seen and liked."""
    logp = HONEST(ids).copy()
    logp[np.arange(len(ids) - 1), ids[1:]] += 1.0
    return normalise(logp)


def cache_by_beginning(state: State, ids: list[int]) -> np.ndarray:
    """A prefix cache whose key is the first two tokens."""
    logp = HONEST(ids).copy()
    other = next((e for e in reversed(state.earlier) if e[:2] == ids[:2]), None)
    if other is not None:
        keep = min(len(other), len(ids), 8)
        logp[:keep] = HONEST(other)[:keep]
    return logp


def trained_meanwhile(state: State, ids: list[int]) -> np.ndarray:
    weight = min(0.5, 5e-4 * state.calls)
    return np.log((1 - weight) * np.exp(HONEST(ids)) + weight * np.exp(OTHER(ids)))


def some_beginnings(state: State, ids: list[int]) -> np.ndarray:
    """One prompt in nine goes to another model."""
    return OTHER(ids) if ids[0] % 9 == 5 else HONEST(ids)


def coarse(state: State, ids: list[int]) -> np.ndarray:
    """Three bits of mantissa, as of an 8-bit float."""
    logits = HONEST(ids)
    step = 2.0 ** (np.floor(np.log2(np.abs(logits) + 1e-9)) - 3)
    return normalise(np.round(logits / step) * step)


FURTHER_LIES: dict[str, Lie] = {
    "all but the token itself mixed up": others_shuffled,
    "probabilities that sum above 1": tail_doubled,
    "long sequences warmer": long_rows_warmer,
    "upper ids off by one": upper_ids_off_by_one,
    "upper scores off by one": upper_scores_off_by_one,
    "stale after the fourth position": then_stale(4),
    "stale after the sixteenth position": then_stale(16),
    "every fiftieth answer is the one before": every_fiftieth,
    "1 of 50 rows the one before": sometimes(50, previous_row),
    "logits below zero": logits_below_zero,
    "logits": lambda state, ids: HONEST(ids) + 6,
    "probabilities": lambda state, ids: np.exp(HONEST(ids)),
    "base-10 logarithms": lambda state, ids: HONEST(ids) / np.log(10),
    "padded in front": padded_in_front,
    "the next token leaks": next_leaks,
    "prefix cache keyed by two tokens": cache_by_beginning,
    "trained meanwhile": trained_meanwhile,
    "another model for some beginnings": some_beginnings,
    "log-probs rounded to two digits": lambda state, ids: np.round(HONEST(ids), 2),
    "log-probs in an 8-bit float": coarse,
}
# From the first request on a function of the tokens alone that no probe tells from a model; of the
# second group a sum over the vocabulary tells, which vLLM's API does not give.
NOT_PROBED = {
    "upper ids off by one",
    "upper scores off by one",
    "another model for some beginnings",
    "log-probs in an 8-bit float",
    "padded in front",
}
NO_SUM = {"probabilities that sum above 1", "logits below zero"}
# Less than what bf16 does, whenever it begins.
NOISE = {"log-probs rounded to two digits"}
# Found where rows that it spares no longer were scored before: by chance in smaller steps.
LARGE_STEPS = {"another model for some beginnings"}
