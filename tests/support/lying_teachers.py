"""Teachers that answer in the right form and wrongly, and what detects them.

A server lies from the first request on, or begins after an honest handshake. It is detected by a
probe of the handshake that forbids training (or notes a loss of precision), or by an error while
scoring. `PYTHONPATH=tests python tests/support/lying_teachers.py` prints a table.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import numpy as np

from opd.errors import UserError
from opd.teachers.dialect import TeacherRecord
from opd.teachers.handshake import HandshakeInputs, run_handshake
from opd.teachers.opd_api import CHECKSUMS, OpdDialect
from opd.teachers.prober import Handshake
from opd.teachers.probes import probe_temperature
from opd.teachers.remote import RemoteOptions, RemoteTeacher
from opd.teachers.vllm_api import VllmDialect
from opd.testing import (
    LETTER_EOS as EOS,
)
from opd.testing import (
    LETTER_VOCAB as VOCAB,
)
from opd.testing import (
    FakeClock,
    FakeTeacherServer,
    FakeVllmServer,
    encode_letters,
    fake_client,
    letter_model,
    random_rollouts,
)
from opd.testing.vllm_server import prompt_logprobs
from opd.types import Want

HONEST = letter_model(0)
OTHER = letter_model(3, corpus="zebra quartz lynx vortex. " * 30)
PERMUTED = np.random.default_rng(5).permutation(VOCAB)
Lie = Callable[[FakeVllmServer, list[int], list, dict], None]


def each(change: Callable[[dict, int, np.random.Generator], None]) -> Lie:
    """Change every scored position: (row, actual id, random numbers)."""

    def lie(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
        rng = np.random.default_rng(len(server.calls))
        for row, token in zip(rows[1:], ids[1:], strict=False):
            change(row, token, rng)

    return lie


def set_all(value: float) -> Lie:
    def change(row: dict, token: int, rng: np.random.Generator) -> None:
        for entry in row.values():
            entry["logprob"] = value

    return each(change)


def shifted(by: int) -> Lie:
    """Position t gets the log-probs of position t + by, under the ids of its own tokens."""

    def lie(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
        logp = server.logp(ids)[:-1]
        own = np.take_along_axis(logp, np.array(ids[1:])[:, None], 1)[:, 0]
        moved = np.roll(own, -by)
        for row, token, value in zip(rows[1:], ids[1:], moved, strict=True):
            row[str(token)] = {"logprob": float(value), "rank": 0}
            while len(row) > 5:
                row.pop(next(k for k in row if k != str(token)))

    return lie


def shifted_rows(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
    """The whole list is one position late."""
    rows[1:] = [rows[1], *rows[1:-1]]


def from_other(which: Callable[[FakeVllmServer, list[int]], list[int]]) -> Lie:
    """Scores of the right tokens, computed after other contexts."""

    def lie(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
        wrong = which(server, ids)
        logp = server.logp(wrong)
        for t, token in enumerate(ids[1:]):
            rows[t + 1] = prompt_logprobs(logp[min(t, len(logp) - 1)], token, 4)

    return lie


def previous(server: FakeVllmServer, ids: list[int]) -> list[int]:
    return server.last_ids or ids


def stale(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
    """Values of the request before, where positions overlap (a buffer that was not refilled)."""
    logp = server.logp(server.last_ids or ids)
    keep = min(len(ids), len(server.last_ids or ids)) - 1
    for t in range(keep):
        rows[t + 1] = prompt_logprobs(logp[t], ids[t + 1], 4)


def permuted(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
    """Another tokenizer: ids mean other letters to this model."""
    logp = server.logp([int(PERMUTED[i]) for i in ids])[:, PERMUTED]
    for t, token in enumerate(ids[1:]):
        rows[t + 1] = prompt_logprobs(logp[t], token, 4)


def other_model(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
    for t, (logp, token) in enumerate(zip(OTHER(ids), ids[1:], strict=False)):
        rows[t + 1] = prompt_logprobs(logp, token, 4)


def unsorted(row: dict, token: int, rng: np.random.Generator) -> None:
    values = sorted(e["logprob"] for e in row.values())
    for entry, value in zip(row.values(), values, strict=True):
        entry["logprob"] = value


def missing(row: dict, token: int, rng: np.random.Generator) -> None:
    row.pop(str(token))
    row[str((token + 1) % VOCAB)] = {"logprob": -9.0, "rank": 9}


def fewer(row: dict, token: int, rng: np.random.Generator) -> None:
    for name in [k for k in row if k != str(token)][:2]:
        row.pop(name)


def positive(row: dict, token: int, rng: np.random.Generator) -> None:
    row[str(token)]["logprob"] = 0.7


def doubled(row: dict, token: int, rng: np.random.Generator) -> None:
    others = [k for k in row if k != str(token)]
    if others:  # a row of the sampled token alone has nothing to double
        row[f"0{others[0]}"] = row.pop(others[-1])


def noisy(row: dict, token: int, rng: np.random.Generator) -> None:
    jitter = float(rng.normal(0, 0.1))
    for entry in row.values():
        entry["logprob"] = min(0.0, entry["logprob"] + jitter)


def half(row: dict, token: int, rng: np.random.Generator) -> None:
    for entry in row.values():
        entry["logprob"] = float(np.float16(entry["logprob"]))


def sentinel(row: dict, token: int, rng: np.random.Generator) -> None:
    row[str(token)]["logprob"] = -9999.0


def retokenised(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
    choice["prompt_token_ids"] = [*ids[:-1], (ids[-1] + 1) % VOCAB]


def bos(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
    rows.insert(1, dict(rows[1]))
    choice.pop("prompt_token_ids")


def truncated(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
    del rows[24:]
    choice.pop("prompt_token_ids")


def no_eos(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
    choice.pop("prompt_token_ids")
    for t in reversed([t for t, i in enumerate(ids) if i == EOS]):
        del rows[t]


def scored_first(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
    rows[0] = rows[1]


def too_much(row: dict, token: int, rng: np.random.Generator) -> None:
    for entry in row.values():
        entry["logprob"] = entry["logprob"] / 3


def ignores(server: FakeVllmServer, ids: list[int], rows: list, choice: dict) -> None:
    choice["prompt_logprobs"] = None


LIES: dict[str, Lie] = {
    "zeros": set_all(0.0),
    "exact chance": set_all(-float(np.log(VOCAB))),
    "constant": set_all(-3.0),
    "scores shifted by +1": shifted(1),
    "scores shifted by -1": shifted(-1),
    "rows shifted by 1": shifted_rows,
    "rows of another request": from_other(previous),
    "stale cache": stale,
    "prompt reversed": from_other(lambda server, ids: ids[::-1]),
    "other tokenizer": permuted,
    "other tokenizer, silent about it": permuted,
    "other model": other_model,
    "top-k unsorted": each(unsorted),
    "sampled token missing": each(missing),
    "fewer than k": each(fewer),
    "positive log-prob": each(positive),
    "one id twice": each(doubled),
    "noise of 0.1 nat": each(noisy),
    "rounded to 16 bits": each(half),
    "sentinel for no value": each(sentinel),
    "probabilities above 1": each(too_much),
    "prompt tokenised anew": retokenised,
    "BOS added": bos,
    "cut at a length": truncated,
    "end tokens dropped": no_eos,
    "first token scored": scored_first,
    "request for scores ignored": ignores,
}
# What a handshake cannot know: another model that models text is a teacher like any other.
ONLY_LATER = {"other model"}
# What leaves no trace in values a canary of this precision compares.
ONLY_EARLY = {"rounded to 16 bits"}


def encode_permuted(text: str) -> list[int]:
    return [int(PERMUTED[i]) for i in encode_letters(text)]


def shake_hands(server: FakeVllmServer) -> tuple[VllmDialect, Handshake]:
    dialect = VllmDialect(fake_client(server, server.clock), "m")
    inputs = HandshakeInputs(VOCAB, encode_letters, topk=4, eos=(EOS,))
    return dialect, run_handshake(dialect, inputs)


def detect_at_handshake(name: str) -> str | None:
    """The probe that detects the lie, or None."""
    server = FakeVllmServer(HONEST)
    server.edit_scores = LIES[name]
    if name.startswith("other tokenizer"):  # where the server can be asked, it tells
        server.tokenize = None if "silent" in name else encode_permuted
    try:
        _, handshake = shake_hands(server)
    except UserError as error:
        return str(error)
    failed = [p for p in handshake.probes if p.level == "fatal" or p.name == "precision"]
    return f"{failed[0].name}: {failed[0].message}" if failed else None


def detect_later(name: str) -> str | None:
    """The error when an honest server begins to lie after the handshake, or None."""
    server = FakeVllmServer(HONEST)
    dialect, handshake = shake_hands(server)
    handshake.require("url")
    options = RemoteOptions(concurrency=2)
    teacher = RemoteTeacher(dialect, "m", vocab=VOCAB, expected=handshake.teacher, options=options)
    teacher.score(random_rollouts(4), Want(sampled=True, topk=4))
    server.edit_scores = LIES[name]
    rollouts = random_rollouts(6, seed=1)
    rollouts[2].ids[-1] = EOS
    try:
        teacher.score(rollouts, Want(sampled=True, topk=4))
    except UserError as error:
        return str(error)
    return None


def detect_temperature(applies: bool) -> str | None:
    """What the handshake says of a server that applies a temperature, or does not."""
    clock = FakeClock()
    server = FakeTeacherServer(HONEST, VOCAB, applies_temperature=applies)
    plain, scaled = (OpdDialect(fake_client(server, clock), temperature=t) for t in (1.0, 2.0))
    handshake = Handshake()
    probe_temperature(handshake, plain, scaled, encode_letters("the water in the river"), 2.0)
    return handshake.fatal[0].message if handshake.fatal else None


def swap_rows(answer: dict[str, np.ndarray]) -> None:
    answer[CHECKSUMS] = answer[CHECKSUMS][::-1]


def detect_swap(swaps: bool) -> str | None:
    """The error when the rows of a batch are swapped, or are not."""
    server = FakeTeacherServer(HONEST, VOCAB, edit_answer=swap_rows if swaps else None)
    dialect = OpdDialect(fake_client(server, FakeClock()))
    teacher = RemoteTeacher(dialect, "m", vocab=VOCAB, expected=TeacherRecord(dialect.identity()))
    try:
        teacher.score(random_rollouts(5, seed=2), Want(sampled=True, topk=4))
    except UserError as error:
        return str(error)
    return None


def false_alarms(seed: int) -> list[str]:
    """What an honest teacher is accused of: nothing, whatever its data and its rounding."""
    rng = np.random.default_rng(seed)
    noise = (0.0, 0.002, 0.01)[seed % 3]  # nats; the largest is bf16's

    def rounding(row: dict, token: int, unused: np.random.Generator) -> None:
        jitter = float(rng.normal(0, noise))
        for entry in row.values():
            entry["logprob"] = min(0.0, entry["logprob"] + jitter)

    server = FakeVllmServer(letter_model(seed))
    server.edit_scores = each(rounding) if noise else None
    try:
        dialect, handshake = shake_hands(server)
        handshake.require("url")
        options = RemoteOptions(concurrency=1)
        teacher = RemoteTeacher(
            dialect, "m", vocab=VOCAB, expected=handshake.teacher, options=options
        )
        for step in range(3):
            teacher.score(random_rollouts(3, seed=seed + step), Want(sampled=True, topk=4))
    except UserError as error:
        return [str(error)]
    return []


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    write = sys.stdout.write
    write("| lie | from the start | after an honest handshake |\n|---|---|---|\n")
    detected = 0
    for name in LIES:
        early = detect_at_handshake(name) if name not in ONLY_LATER else "(no lie yet)"
        late = detect_later(name) if name not in ONLY_EARLY else "(within rounding)"
        detected += early is not None and late is not None
        cells = [(c or "NOT DETECTED").splitlines()[0][:110] for c in (early, late)]
        write(f"| {name} | {cells[0]} | {cells[1]} |\n")
    temperature, swap = detect_temperature(False), detect_swap(True)
    write(f"| temperature not applied | {temperature or 'NOT DETECTED'} | - |\n")
    write(f"| batch rows swapped | - | {(swap or 'NOT DETECTED')[:110]} |\n")
    detected += (temperature is not None) + (swap is not None)
    alarms = [false_alarms(seed) for seed in range(200)]
    write(f"\n{detected} of {len(LIES) + 2} lies detected; ")
    write(f"{sum(map(bool, alarms))} false alarms in {len(alarms)} honest runs.\n")
    for accused in filter(None, alarms):
        write(f"  {accused[0]}\n")


if __name__ == "__main__":
    main()
