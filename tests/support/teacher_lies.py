"""Forty ways in which a teacher server can lie, at any time and over both protocols.

A lie is a language model that is wrong: a function from (honest model, token ids) to log-probs,
with a memory of earlier calls. What finds it: the handshake, the checks of a run within two steps
of its beginning, or the weights (`opd verify --local`). `PYTHONPATH=tests python
tests/support/teacher_lies.py` prints the table of docs/scale.md and counts false alarms.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
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
from support.lies import (
    CONSISTENT,
    CONSISTENT_VLLM,
    HONEST,
    LIES,
    NOISE,
    STUDENT,
    Lie,
    State,
    normalise,
)

K, PROMPTS, RESPONSES, LENGTH = 4, 64, 4, 16
Protocol = Literal["opd", "vllm"]


def impossible(name: str, protocol: Protocol) -> bool:
    """Whether a lie from the start on cannot be found without the weights."""
    return name in (CONSISTENT if protocol == "opd" else CONSISTENT_VLLM)


class Liar:
    """A model that is honest until it is made to lie."""

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


def checked_fraction(prompts: int, steps: int = 12) -> float:
    """Tokens scored again, of those of the steps after the first."""
    taken: list[float] = []
    dialect = connect(HONEST, "opd")
    options = RemoteOptions(
        record=lambda name, value: taken.append(value) if name == "teacher/checked" else None
    )
    expected = handshake(dialect).teacher
    teacher = RemoteTeacher(dialect, "m", vocab=LETTER_VOCAB, expected=expected, options=options)
    for step in range(1, steps + 1):
        teacher.score(rollouts_of(1 + step % 4, prompts), Want(sampled=True, topk=K))
    return float(np.mean(taken[1:]))


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
