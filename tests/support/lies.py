"""Forty wrong teachers: functions from (honest model, token ids) to log-probs, with a memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from opd.testing import (
    LETTER_VOCAB,
    NextLogp,
    encode_letters,
    letter_model,
)

HONEST, STUDENT = letter_model(0), letter_model(1, smoothing=0.6)
OTHER = letter_model(3, corpus="zebra quartz lynx vortex. " * 30)
SIBLING = letter_model(2, smoothing=0.8)  # another checkpoint, say


def normalise(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@dataclass
class State:
    """What a lying server remembers."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    calls: int = 0
    earlier: list[list[int]] = field(default_factory=list)  # sequences since the lie began
    known: set[tuple[int, ...]] = field(default_factory=set)  # sequences before it
    hits: int = 0  # rows of a lie that comes now and then

    def hit(self, one_in: int) -> bool:
        hit = bool(self.rng.random() < 1 / one_in)
        self.hits += hit
        return hit


Lie = Callable[[State, list[int]], np.ndarray]


def shift(by: int) -> Lie:
    """Every token gets the score of the token `by` positions later."""

    def lie(state: State, ids: list[int]) -> np.ndarray:
        logp = HONEST(ids).copy()
        own = logp[np.arange(len(ids) - 1), ids[1:]]
        for t, value in enumerate(np.roll(own, -by)):
            logp[t] = _with_value(logp[t], ids[t + 1], value)
        return logp

    return lie


def _with_value(row: np.ndarray, token: int, value: float) -> np.ndarray:
    """The distribution with another log-prob of one token, normalised."""
    rest = np.log1p(-np.exp(min(value, -1e-9))) - np.log1p(-np.exp(min(row[token], -1e-9)))
    changed = row + rest
    changed[token] = value
    return changed


def window(size: int) -> Lie:
    """Only the last `size` tokens are seen."""
    return lambda state, ids: np.stack(
        [HONEST(ids[max(0, t + 1 - size) : t + 1])[-1] for t in range(len(ids))]
    )


def without_first(state: State, ids: list[int]) -> np.ndarray:
    rest = HONEST(ids[1:])
    return np.concatenate([np.full((1, LETTER_VOCAB), -np.log(LETTER_VOCAB)), rest])


def second_half_only(state: State, ids: list[int]) -> np.ndarray:
    return np.stack([HONEST(ids[(t + 1) // 2 : t + 1])[-1] for t in range(len(ids))])


def chunked(size: int) -> Lie:
    """The context is forgotten at every multiple of `size`."""
    return lambda state, ids: np.concatenate(
        [HONEST(ids[t : t + size]) for t in range(0, len(ids), size)]
    )


def fitted(logp: np.ndarray, count: int) -> np.ndarray:
    """Rows of another sequence for one of `count` tokens."""
    return logp[np.arange(count) % len(logp)]


def previous_row(state: State, ids: list[int]) -> np.ndarray:
    other = state.earlier[-1] if state.earlier else ids
    return fitted(HONEST(other), len(ids))


def first_row(state: State, ids: list[int]) -> np.ndarray:
    burst = (len(state.earlier) // 8) * 8  # of about a request's size
    other = state.earlier[burst] if len(state.earlier) > burst else ids
    return fitted(HONEST(other), len(ids))


def stale_prefix(state: State, ids: list[int]) -> np.ndarray:
    logp = HONEST(ids).copy()
    if state.earlier:
        old = HONEST(state.earlier[-1])
        keep = min(len(old), len(ids) // 2)
        logp[:keep] = old[:keep]
    return logp


def by_length(state: State, ids: list[int]) -> np.ndarray:
    """A cache whose key is the length."""
    other = next((e for e in state.earlier if len(e) == len(ids)), ids)
    return HONEST(other)


def sometimes(one_in: int, lie: Lie) -> Lie:
    return lambda state, ids: lie(state, ids) if state.hit(one_in) else HONEST(ids)


def shuffled(state: State, ids: list[int]) -> np.ndarray:
    return state.rng.permutation(HONEST(ids))


def of_another(state: State, ids: list[int]) -> np.ndarray:
    return HONEST(state.rng.integers(0, LETTER_VOCAB, len(ids)).tolist())


def honest_on_known(state: State, ids: list[int]) -> np.ndarray:
    return HONEST(ids) if tuple(ids) in state.known else OTHER(ids)


def alternating(state: State, ids: list[int]) -> np.ndarray:
    return (HONEST, SIBLING)[state.calls % 2](ids)


def drifting(state: State, ids: list[int]) -> np.ndarray:
    return normalise(HONEST(ids) * (1 + 2e-4 * state.calls))


def plain(model: Callable[[list[int]], np.ndarray]) -> Lie:
    return lambda state, ids: model(ids)


def logits(change: Callable[[np.ndarray], np.ndarray]) -> Lie:
    return lambda state, ids: normalise(change(HONEST(ids)))


def mixed(weight: float, other: NextLogp) -> Lie:
    return plain(
        lambda ids: np.log((1 - weight) * np.exp(HONEST(ids)) + weight * np.exp(other(ids)))
    )


def uniform(ids: Sequence[int]) -> np.ndarray:
    return np.full((len(ids), LETTER_VOCAB), -np.log(LETTER_VOCAB))


def unigram(ids: Sequence[int]) -> np.ndarray:
    return np.tile(HONEST([0])[-1], (len(ids), 1))


def permuted(ids: list[int]) -> np.ndarray:
    order = np.random.default_rng(5).permutation(LETTER_VOCAB)
    return HONEST([int(order[i]) for i in ids])[:, order]


def jitter(scale: float) -> Lie:
    return lambda state, ids: normalise(
        HONEST(ids) + state.rng.normal(0, scale, (len(ids), LETTER_VOCAB))
    )


def favoured(token: int, by: float) -> Lie:
    return logits(lambda x: x + by * (np.arange(LETTER_VOCAB) == token))


FIXED_ERROR = np.random.default_rng(7).normal(0, 0.1, LETTER_VOCAB)

LIES: dict[str, Lie] = {
    "all scores zero": plain(lambda ids: np.zeros((len(ids), LETTER_VOCAB))),
    "uniform scores": plain(uniform),
    "scores without context": plain(unigram),
    "scores shifted by +1": shift(1),
    "scores shifted by -1": shift(-1),
    "scores shifted by +2": shift(2),
    "scores shifted by -2": shift(-2),
    "context cut to the last 4": window(4),
    "context cut to the last 16": window(16),
    "context cut to its second half": second_half_only,
    "context forgotten every 16 tokens": chunked(16),
    "first token unseen": without_first,
    "context reversed": plain(
        lambda ids: np.stack([HONEST(ids[: t + 1][::-1])[-1] for t in range(len(ids))])
    ),
    "rows of a batch mixed up": previous_row,
    "a batch answered with its first sequence": first_row,
    "prefix cache of another sequence": stale_prefix,
    "cache keyed by length": by_length,
    "1 of 20 rows shuffled": sometimes(20, shuffled),
    "1 of 100 rows shuffled": sometimes(100, shuffled),
    "1 of 100 rows of another sequence": sometimes(100, of_another),
    "1 of 100 rows uniform": sometimes(100, plain(uniform)),
    "1 of 100 rows by another model": sometimes(100, plain(OTHER)),
    "honest on known text, another model elsewhere": honest_on_known,
    "two replicas that differ by turns": alternating,
    "temperature drifts": drifting,
    "another model": plain(OTHER),
    "a sibling of the model": plain(SIBLING),
    "10 % of another model": mixed(0.1, OTHER),
    "10 % uniform": mixed(0.1, uniform),
    "other tokenizer": plain(permuted),
    "base-2 logarithms": plain(lambda ids: HONEST(ids) / np.log(2)),
    "temperature 1.5": logits(lambda x: x / 1.5),
    "temperature 0.7": logits(lambda x: x / 0.7),
    "temperature 1.02": logits(lambda x: x / 1.02),
    "logits rounded to integers": logits(np.round),
    "a fixed error of 0.1 a logit": logits(lambda x: x + FIXED_ERROR),
    "new noise of 0.1 a logit": jitter(0.1),
    "new noise of 0.02 a logit": jitter(0.02),
    "one token favoured by 2 logits": favoured(encode_letters("e")[0], 2.0),
    "a rare token favoured by 2 logits": favoured(encode_letters("z")[0], 2.0),
}
# From the first request on these are models like any other: without the weights nobody can know
# that another one was meant.
CONSISTENT = {
    "honest on known text, another model elsewhere",
    "another model",
    "a sibling of the model",
    "other tokenizer",
    "10 % of another model",
    "10 % uniform",
    "temperature 1.5",
    "temperature 0.7",
    "temperature 1.02",
    "a fixed error of 0.1 a logit",
    "one token favoured by 2 logits",
    "a rare token favoured by 2 logits",
}
# Nothing but a sum over the vocabulary tells, and vLLM's API gives no such sum.
CONSISTENT_VLLM = CONSISTENT | {"base-2 logarithms"}
# Within the noise of an honest model in bf16: allowed for, whenever it begins.
NOISE = {"new noise of 0.02 a logit"}
