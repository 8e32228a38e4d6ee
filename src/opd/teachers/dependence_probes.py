"""Probes of what a score depends on: its own token and the whole text before it, nothing after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from opd.teachers.dialect import text_rollout
from opd.teachers.prober import Handshake, Prober
from opd.teachers.probes import MAX_NOISE
from opd.teachers.repeats import FIRST_MAX, topk_distances
from opd.types import Want

MIN_MOVED = 1e-3  # nats a token: less is rounding
MAX_REACH = 8192  # tokens of the longest probed sequence
MAX_TAIL, MIN_TAIL = 48, 8  # tokens at its end
NEAR = 96  # tokens of the short one
OTHERS = 3  # tokens tried in place of one

# Fractions of a text that are replaced. A window shorter than the rest is found by the first; a
# longer one by the second, whose trace may be below a model's noise: then it forbids nothing.
MUCH, LITTLE = 0.375, 0.125
ENOUGH = 1.25  # times the noise


def probe_position(prober: Prober, texts: Sequence[Sequence[int]]) -> None:
    """Changing a token moves its own score and the next one's, and no earlier score."""
    text = list(texts[0][:32])
    middle, last = len(text) // 2, len(text) - 1
    others = _other_tokens(texts, {text[middle], text[last]})
    changed = {at: [[*text[:at], t, *text[at + 1 :]] for t in others] for at in (middle, last)}
    logp = prober.token_logp([text, *changed[middle], *changed[last]])
    if logp is None:
        return
    rows = {middle: logp[1 : 1 + len(others)], last: logp[1 + len(others) :]}
    noise, seen = largest_noise(prober.result), max(MIN_MOVED, prober.result.noise_max)
    for at in (middle, last):
        moved = np.max([np.abs(row - logp[0]) for row in rows[at]], axis=0)
        # Scores begin with the second token.
        early, own, following = moved[: at - 1].max(), moved[at - 1], moved[at : at + 1]
        if early > noise or own <= seen or (following <= seen).any():
            then = f", of the next one by {following[0]:.3f}" if len(following) else ""
            prober.result.add(
                "position",
                "fatal",
                f"changing token {at} moves its own score by {own:.3f} nats{then}, and earlier "
                f"ones by up to {early:.3f}: scores are shifted against the tokens they belong to",
            )
            return
    prober.result.add("position", "ok", "a token's score depends on it and what stands before")


def probe_own_token(prober: Prober, texts: Sequence[Sequence[int]]) -> None:
    """The top tokens of a position are the same, whichever token stands there."""
    if prober.topk < 1:
        return
    text = list(texts[0][:32])
    others = _other_tokens(texts, {text[-1]})
    sequences = [text_rollout(s) for s in (text, *([*text[:-1], t] for t in others))]
    scores = prober.request(sequences, Want(sampled=True, topk=prober.topk))
    if scores is None or any(s.topk_ids is None or not s.topk_ids.size for s in scores):
        return
    moved = max(float(topk_distances(scores[0], s)[-1].max()) for s in scores[1:])
    limit = max(FIRST_MAX, largest_noise(prober.result))
    if moved > limit:
        prober.result.add(
            "own token",
            "fatal",
            f"the log-probs of a position's top tokens move by {moved:.3f} nats (noise allows "
            f"{limit:.2g}) when another token stands there: a score must depend on what stands "
            "before alone. The server's causal mask is wrong.",
        )


def probe_reach(prober: Prober, texts: Sequence[Sequence[int]], max_length: int | None) -> None:
    """Scores depend on the whole text before them: on the first token, near and far.

    The beginning of a text is replaced, and its last tokens must notice: in a short text, and in
    one as long as the run's longest sequence.
    """
    result = prober.result
    moved = _moved_by_first_token(prober, texts)
    if moved is None:
        return
    if moved <= max(MIN_MOVED, result.noise_max):
        result.add(
            "reach",
            "fatal",
            f"another first token moves the score of the second by {moved:.3f} nats: the server "
            "does not see the first token of what it is sent",
        )
        return
    context = prober.dialect.context
    longest = min(max_length or NEAR, MAX_REACH, context or MAX_REACH)
    longest = max(2 * MIN_TAIL, longest)
    for length in sorted({min(NEAR, longest), longest}):
        noticed = _notices(prober, texts, length, MUCH)
        if noticed is None:
            return
        if not noticed:
            result.add("reach", "fatal", _unseen(length, MUCH))
            return
    if longest > NEAR and _notices(prober, texts, longest, LITTLE) is False:
        exact = result.noise_max < MIN_MOVED
        result.add("reach", "fatal" if exact else "note", _unseen(longest, LITTLE))
        return
    result.add("reach", "ok", f"the last tokens of {longest} depend on the first ones")


def _unseen(length: int, fraction: float) -> str:
    return (
        f"the last tokens of {length} score the same whatever the first {int(length * fraction)} "
        "are: the server sees only the end of a text. Check its context settings; a model with so "
        "short a window cannot teach at this length."
    )


def largest_noise(result: Handshake) -> float:
    """By how much rounding may move one score, in nats."""
    return max(MIN_MOVED, 2 * result.noise_max)


def _other_tokens(texts: Sequence[Sequence[int]], excluded: set[int]) -> list[int]:
    return sorted({t for ids in texts for t in ids} - excluded)[:OTHERS]


def _moved_by_first_token(prober: Prober, texts: Sequence[Sequence[int]]) -> float | None:
    """By how much the second token's score moves at most when the first is another one, in nats."""
    text = list(texts[0][:MIN_TAIL])
    others = _other_tokens(texts, {text[0]})
    logp = prober.token_logp([text, *([other, *text[1:]] for other in others)])
    return None if logp is None else max(float(abs(row[0] - logp[0][0])) for row in logp[1:])


def _notices(
    prober: Prober, texts: Sequence[Sequence[int]], length: int, fraction: float
) -> bool | None:
    """Whether the last tokens of a text score differently when its beginning is replaced.

    The text ends as it begins, which every model learns to copy, so the trace of the beginning is
    nats and not noise. It is replaced by the most frequent of these tokens, repeated. None: no
    answer.
    """
    end = list(texts[-1][: min(MAX_TAIL, max(MIN_TAIL, length // 2))])
    filler = [t for text in texts[:-1] or texts for t in text]
    count = length - len(end)
    before = [*end, *filler * (1 + count // len(filler))][:count]
    other = [max(end, key=end.count)] * int(length * fraction)
    # Without top tokens: over JSON those of a long sequence are megabytes.
    plain, beginning = replace(prober, topk=0), before[: max(MIN_TAIL, min(NEAR, length) // 8) + 1]
    logp = plain.token_logp([[*before, *end], [*other, *before[len(other) :], *end], beginning])
    if logp is None:
        return None
    longer = float(np.abs(logp[2] - logp[0][: len(logp[2])]).mean())
    limit = MAX_NOISE + 3 * prober.result.noise_max / math.sqrt(len(logp[2]))
    if longer > limit:
        prober.result.add(
            "length",
            "fatal",
            f"{len(beginning)} tokens score {longer:.3f} nats each differently when {length} are "
            f"sent (noise allows {limit:.2g}): the length of a text changes what stands at its "
            "beginning. Switch off what the server does with long texts (dynamic RoPE scaling, "
            "another model).",
        )
        return None
    moved = np.abs(logp[0] - logp[1])[-max(MIN_TAIL, len(end) // 2) :]
    result = prober.result
    enough = max(MIN_MOVED, ENOUGH * result.noise_mean)
    return bool(moved.mean() > enough or moved.max() > largest_noise(result))
