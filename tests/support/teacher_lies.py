"""Forty ways in which a teacher server can lie, at any time and over both protocols.

A lie is a language model that is wrong: a function from (honest model, token ids) to log-probs,
with a memory of earlier calls. What finds it: the handshake, the checks of a run within two steps
of its beginning, or the weights (`opd verify --local`). `PYTHONPATH=tests python
tests/support/teacher_lies.py` prints the table of docs/scale.md and counts false alarms.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from opd.errors import UserError
from opd.recipes.invariants import largest_score_difference
from opd.teachers.dialect import Dialect
from opd.teachers.handshake import HandshakeInputs, run_handshake
from opd.teachers.opd_api import OpdDialect
from opd.teachers.prober import Handshake
from opd.teachers.remote import RemoteOptions, RemoteTeacher
from opd.teachers.vllm_api import VllmDialect
from opd.testing import (
    LETTER_EOS,
    LETTER_VOCAB,
    FakeClock,
    FakeTeacher,
    FakeTeacherServer,
    FakeVllmServer,
    NextLogp,
    encode_letters,
    fake_client,
    letter_model,
)
from opd.testing.language import completion_logp
from opd.types import Prompt, Rollout, Want

HONEST, STUDENT = letter_model(0), letter_model(1, smoothing=0.6)
OTHER = letter_model(3, corpus="zebra quartz lynx vortex. " * 30)
SIBLING = letter_model(2, smoothing=0.8)  # another checkpoint, say
K, PROMPTS, RESPONSES, LENGTH = 4, 64, 4, 16
Protocol = Literal["opd", "vllm"]


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


def impossible(name: str, protocol: Protocol) -> bool:
    """Whether a lie from the start on cannot be found without the weights."""
    return name in (CONSISTENT if protocol == "opd" else CONSISTENT_VLLM)


class Liar:
    """A model that is honest until told to lie."""

    def __init__(self, lie: Lie) -> None:
        self.lie, self.lies, self.state = lie, False, State()

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        sequence, state = list(ids), self.state
        if not self.lies:
            state.known.add(tuple(sequence))
            return HONEST(sequence)
        state.calls += 1
        logp = self.lie(state, sequence)
        state.earlier.append(sequence)
        return logp


def connect(model: NextLogp, protocol: Protocol) -> Dialect:
    clock = FakeClock()
    if protocol == "opd":
        server = FakeTeacherServer(model, LETTER_VOCAB, tokenize=encode_letters, context=600)
        return OpdDialect(fake_client(server, clock))
    return VllmDialect(fake_client(FakeVllmServer(model, max_len=601), clock), "m")


def handshake(dialect: Dialect) -> Handshake:
    inputs = HandshakeInputs(
        LETTER_VOCAB, encode_letters, topk=K, eos=(LETTER_EOS,), max_length=300
    )
    return run_handshake(dialect, inputs)


def step_rollouts(step: int, prompts: int = PROMPTS) -> list[Rollout]:
    """Rollouts of a student, with its log-probs."""
    rng = np.random.default_rng(100 + step)
    rollouts = []
    for index in range(prompts):
        prompt = Prompt(index, tuple(rng.integers(0, 26, rng.integers(4, 12)).tolist()), "")
        for _ in range(RESPONSES):
            ids: list[int] = []
            while len(ids) < LENGTH:
                logp = STUDENT([*prompt.ids, *ids])[-1]
                ids.append(int(rng.choice(LETTER_VOCAB, p=np.exp(logp) / np.exp(logp).sum())))
            logp = completion_logp(STUDENT, Rollout.of_ids(prompt, ids))
            best = np.argsort(-logp, 1)[:, :K].astype(np.int32)
            rollout = Rollout.of_ids(prompt, ids, topk_ids=best)
            own = np.take_along_axis(logp, rollout.ids[:, None].astype(int), 1)[:, 0]
            top = np.take_along_axis(logp, best, 1)
            rollouts.append(
                replace(rollout, logp=own.astype(np.float32), topk_logp=top.astype(np.float32))
            )
    return rollouts


STEPS: dict[tuple[int, int], list[Rollout]] = {}


def rollouts_of(step: int, prompts: int = PROMPTS) -> list[Rollout]:
    if (step, prompts) not in STEPS:
        STEPS[step, prompts] = step_rollouts(step, prompts)
    return STEPS[step, prompts]


def detect(
    name: str, protocol: Protocol, start: int, *, prompts: int = PROMPTS
) -> tuple[str, str] | None:
    """Where a lie that begins before a step is found: at which time, and the message.

    Args:
        name: of the lie.
        protocol: of the server.
        start: 0: it lies from the first request; n: from step n on.
        prompts: of a step.
    """
    return detect_liar(Liar(LIES[name]), protocol, start, prompts=prompts)


def detect_liar(
    liar: Liar, protocol: Protocol, start: int, *, prompts: int = PROMPTS
) -> tuple[str, str] | None:
    """See `detect`."""
    liar.lies = start == 0
    try:
        dialect = connect(liar, protocol)
        result = handshake(dialect)
    except UserError as error:
        return "handshake", str(error)
    if result.fatal:
        return "handshake", f"{result.fatal[0].name}: {result.fatal[0].message}"
    teacher = RemoteTeacher(
        dialect,
        "m",
        vocab=LETTER_VOCAB,
        expected=result.teacher,
        options=RemoteOptions(concurrency=1),
    )
    want = Want(sampled=True, support=protocol == "opd", topk=K)
    for step in range(1, max(start, 1) + 2):
        liar.lies = liar.lies or step >= start > 0
        try:
            teacher.score(rollouts_of(step, prompts), want)
        except UserError as error:
            return f"step {step}", str(error)
    return None


def detect_with_weights(name: str) -> float:
    """Largest difference, in nats, that `opd verify --local` sees."""
    liar = Liar(LIES[name])
    liar.lies = True
    server, local = FakeTeacher(liar), FakeTeacher(HONEST)
    return largest_score_difference(local, server, rollouts_of(1, 8), Want(True, True, K))


def bf16(seed: int) -> NextLogp:
    """An honest model in bf16: rounded logits, and batches that move them by a rounding."""
    model, rng = letter_model(seed), np.random.default_rng(seed)
    offset = 8.0 + rng.uniform(0, 16)  # the size of a logit decides how coarse bf16 is

    def logp(ids: Sequence[int]) -> np.ndarray:
        values = model(ids) + offset
        values += rng.normal(0, 0.02, values.shape)
        ulp = 2.0 ** (np.floor(np.log2(np.abs(values) + 1e-9)) - 7)
        return normalise(np.round(values / ulp) * ulp)

    return logp


def false_alarm(seed: int, *, steps: int = 3, prompts: int = 8) -> str | None:
    """What an honest teacher in bf16 is accused of."""
    protocol: Protocol = ("opd", "vllm")[seed % 2]
    try:
        dialect = connect(bf16(seed), protocol)
        result = handshake(dialect)
        result.require("url")
        options = RemoteOptions(concurrency=1)
        teacher = RemoteTeacher(
            dialect, "m", vocab=LETTER_VOCAB, expected=result.teacher, options=options
        )
        for step in range(1, steps + 1):
            rollouts = rollouts_of(1 + (seed + step) % 7, prompts)
            teacher.score(rollouts, Want(sampled=True, support=protocol == "opd", topk=K))
    except UserError as error:
        return str(error)
    return None


def checked_fraction(prompts: int, steps: int = 4) -> float:
    """Tokens scored again, of those of a step."""
    taken: list[float] = []
    dialect = connect(HONEST, "opd")
    options = RemoteOptions(
        record=lambda name, value: taken.append(value) if name == "teacher/checked" else None
    )
    expected = handshake(dialect).teacher
    teacher = RemoteTeacher(dialect, "m", vocab=LETTER_VOCAB, expected=expected, options=options)
    for step in range(1, steps + 1):
        teacher.score(rollouts_of(step, prompts), Want(sampled=True, topk=K))
    return float(np.mean(taken))


def cell(name: str, protocol: Protocol, start: int) -> str:
    """One cell of the table."""
    found = detect(name, protocol, start)
    if found is None:
        if name in NOISE:
            return "within noise"
        return "impossible" if start == 0 and impossible(name, protocol) else "NOT FOUND"
    when, message = found
    return f"{when}: {message.split(':')[0]}" if when == "handshake" else when


def main(runs: int = 500) -> None:
    """Print the table and the number of false alarms."""
    logging.disable(logging.WARNING)
    write = sys.stdout.write
    columns = [(protocol, start) for start in (0, 2) for protocol in ("opd", "vllm")]
    write("| lie | start, opd | start, vLLM | step 2, opd | step 2, vLLM | with weights, nats |\n")
    write("|---|---|---|---|---|---|\n")
    for name in LIES:
        cells = [cell(name, protocol, start) for protocol, start in columns]
        weights = detect_with_weights(name)
        write(f"| {name} | {' | '.join(cells)} | {weights:.2g} |\n")
        sys.stdout.flush()
    for prompts in (8, 64):
        fraction = checked_fraction(prompts)
        write(f"\n{prompts * RESPONSES} rollouts a step: {100 * fraction:.1f} % scored again")
    alarms = [a for a in map(false_alarm, range(runs)) if a is not None]
    write(f"\n\n{len(alarms)} false alarms in {runs} honest runs in bf16.\n")
    for alarm in alarms[:5]:
        write(f"  {alarm}\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
