"""Teachers that answer politely and wrongly: `python liars.py` tables who is found, and by what.

A liar lies from the first request on, or begins after an honest handshake. `found` is a probe of
the handshake that forbids training (or notes a loss of precision), or an error while scoring.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

import httpx2
import numpy as np

from opd.errors import UserError
from opd.teachers import wire
from opd.teachers.dialect import TeacherRecord
from opd.teachers.handshake import HandshakeInputs, run_handshake
from opd.teachers.opd_api import PROTOCOL, REQUEST_ARRAYS, OpdDialect, row_checksum
from opd.teachers.prober import Handshake
from opd.teachers.probes import probe_temperature
from opd.teachers.remote import RemoteOptions, RemoteTeacher
from opd.teachers.vllm_api import VllmDialect
from opd.types import Want
from support.fake_vllm import (
    EOS,
    VOCAB,
    FakeClock,
    FakeVllm,
    bigram,
    client,
    encode,
    raw,
    reply,
    rollouts,
)

HONEST = bigram(0)
OTHER = bigram(3, corpus="zebra quartz lynx vortex. " * 30)
PERMUTED = np.random.default_rng(5).permutation(VOCAB)
Lie = Callable[[FakeVllm, list[int], list, dict], None]


def each(change: Callable[[dict, int, np.random.Generator], None]) -> Lie:
    """Change every scored position: (row, actual id, random numbers)."""

    def lie(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
        rng = np.random.default_rng(len(server.asked))
        for row, token in zip(rows[1:], ids[1:], strict=False):
            change(row, token, rng)

    return lie


def set_all(value: float) -> Lie:
    def change(row: dict, token: int, rng: np.random.Generator) -> None:
        for entry in row.values():
            entry["logprob"] = value

    return each(change)


def shifted(by: int) -> Lie:
    """Position t is told the log-probs of position t + by, under its own tokens' names."""

    def lie(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
        logp = server.logp(ids)[:-1]
        own = np.take_along_axis(logp, np.array(ids[1:])[:, None], 1)[:, 0]
        moved = np.roll(own, -by)
        for row, token, value in zip(rows[1:], ids[1:], moved, strict=True):
            row[str(token)] = {"logprob": float(value), "rank": 0}
            while len(row) > 5:
                row.pop(next(k for k in row if k != str(token)))

    return lie


def shifted_rows(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
    """The whole list is one position late."""
    rows[1:] = [rows[1], *rows[1:-1]]


def from_other(which: Callable[[FakeVllm, list[int]], list[int]]) -> Lie:
    """Scores of the right tokens, computed after other contexts."""

    def lie(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
        wrong = which(server, ids)
        logp = server.logp(wrong)
        for t, token in enumerate(ids[1:]):
            rows[t + 1] = server.row(logp[min(t, len(logp) - 1)], token, 4)

    return lie


def previous(server: FakeVllm, ids: list[int]) -> list[int]:
    return server.last_ids or ids


def stale(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
    """Values of the request before, where positions overlap (a buffer that was not refilled)."""
    logp = server.logp(server.last_ids or ids)
    keep = min(len(ids), len(server.last_ids or ids)) - 1
    for t in range(keep):
        rows[t + 1] = server.row(logp[t], ids[t + 1], 4)


def permuted(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
    """Another tokenizer: ids mean other letters to this model."""
    logp = server.logp([int(PERMUTED[i]) for i in ids])[:, PERMUTED]
    for t, token in enumerate(ids[1:]):
        rows[t + 1] = server.row(logp[t], token, 4)


def other_model(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
    for t, (logp, token) in enumerate(zip(OTHER(ids), ids[1:], strict=False)):
        rows[t + 1] = server.row(logp, token, 4)


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


def retokenised(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
    choice["prompt_token_ids"] = [*ids[:-1], (ids[-1] + 1) % VOCAB]


def bos(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
    rows.insert(1, dict(rows[1]))
    choice.pop("prompt_token_ids")


def truncated(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
    del rows[24:]
    choice.pop("prompt_token_ids")


def no_eos(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
    choice.pop("prompt_token_ids")
    for t in reversed([t for t, i in enumerate(ids) if i == EOS]):
        del rows[t]


def scored_first(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
    rows[0] = rows[1]


def too_much(row: dict, token: int, rng: np.random.Generator) -> None:
    for entry in row.values():
        entry["logprob"] = entry["logprob"] / 3


def ignores(server: FakeVllm, ids: list[int], rows: list, choice: dict) -> None:
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


def other_words(text: str) -> list[int]:
    return [int(PERMUTED[i]) for i in encode(text)]


def meet(server: FakeVllm) -> tuple[VllmDialect, Handshake]:
    dialect = VllmDialect(client(server, server.clock), "m")
    hands = run_handshake(dialect, HandshakeInputs(VOCAB, encode, topk=4, eos=(EOS,)))
    return dialect, hands


def found_at_handshake(name: str) -> str | None:
    """The probe that found the liar, or None."""
    server = FakeVllm(HONEST, clock=FakeClock())
    server.lie = LIES[name]
    if name.startswith("other tokenizer"):  # where the server can be asked, it tells
        server.tokenizer = None if "silent" in name else other_words
    try:
        _, hands = meet(server)
    except UserError as error:
        return str(error)
    told = [p for p in hands.probes if p.level == "fatal" or p.name == "precision"]
    return f"{told[0].name}: {told[0].message}" if told else None


def found_later(name: str) -> str | None:
    """The error when an honest server begins to lie after the handshake, or None."""
    server = FakeVllm(HONEST, clock=FakeClock())
    dialect, hands = meet(server)
    hands.require("url")
    options = RemoteOptions(concurrency=2)
    teacher = RemoteTeacher(dialect, "m", vocab=VOCAB, expected=hands.teacher, options=options)
    teacher.score(rollouts(4), Want(sampled=True, topk=4))
    server.lie = LIES[name]
    given = rollouts(6, seed=1)
    given[2].ids[-1] = EOS
    try:
        teacher.score(given, Want(sampled=True, topk=4))
    except UserError as error:
        return str(error)
    return None


class FakeOpd(httpx2.BaseTransport):
    """`opd serve-teacher` in memory, honest but for `applies_temperature` and `swaps`."""

    def __init__(
        self, *, applies_temperature: bool = True, swaps: bool = False, protocol: str = PROTOCOL
    ) -> None:
        self.applies_temperature, self.swaps = applies_temperature, swaps
        self.protocol = protocol

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        if request.url.path == "/v1/opd/info":
            info = {"protocol": self.protocol, "model": "m", "fingerprint": "f", "vocab": VOCAB}
            return reply(info | {"context": 4096, "eos": [EOS], "max_tokens": 4096})
        meta, arrays = wire.unpack(request.content, REQUEST_ARRAYS)
        sequences = np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])
        rows, sampled, tops, top_logp = [], [], [], []
        for ids, count in zip(sequences, arrays["completions"], strict=True):
            logits = HONEST(ids.tolist())[len(ids) - count - 1 : -1]
            heat = meta["temperature"] if self.applies_temperature else 1.0
            logp = logits / heat
            logp = logp - np.log(np.exp(logp).sum(1, keepdims=True))
            rows.append(row_checksum(ids))
            sampled.append(np.take_along_axis(logp, ids[-count:, None].astype(int), 1)[:, 0])
            best = np.argsort(-logp, 1, kind="stable")[:, : max(1, meta["topk"])]
            tops.append(best)
            top_logp.append(np.take_along_axis(logp, best, 1))
        if self.swaps:
            rows = rows[::-1]
        answer = {
            "rows": np.array(rows, np.int32),
            "sampled": np.concatenate(sampled).astype(np.float32),
            "topk_ids": np.concatenate(tops).astype(np.int32),
            "topk_logp": np.concatenate(top_logp).astype(np.float32),
        }
        return raw(wire.pack({}, answer))


def temperature_found(applies: bool) -> str | None:
    clock = FakeClock()
    server = FakeOpd(applies_temperature=applies)
    plain, hot = (OpdDialect(client(server, clock), temperature=t) for t in (1.0, 2.0))
    hands = Handshake()
    probe_temperature(hands, plain, hot, encode("the water in the river"), 2.0)
    return hands.fatal[0].message if hands.fatal else None


def swap_found(swaps: bool) -> str | None:
    clock = FakeClock()
    dialect = OpdDialect(client(FakeOpd(swaps=swaps), clock))
    teacher = RemoteTeacher(dialect, "m", vocab=VOCAB, expected=TeacherRecord(dialect.identity()))
    try:
        teacher.score(rollouts(5, seed=2), Want(sampled=True, topk=4))
    except UserError as error:
        return str(error)
    return None


def clean_run(seed: int) -> list[str]:
    """What a good teacher is accused of: nothing, whatever its data and its rounding."""
    rng = np.random.default_rng(seed)
    noise = (0.0, 0.002, 0.01)[seed % 3]  # nats; the largest is bf16's

    def rounding(row: dict, token: int, unused: np.random.Generator) -> None:
        jitter = float(rng.normal(0, noise))
        for entry in row.values():
            entry["logprob"] = min(0.0, entry["logprob"] + jitter)

    server = FakeVllm(bigram(seed), clock=FakeClock())
    server.lie = each(rounding) if noise else None
    try:
        dialect, hands = meet(server)
        hands.require("url")
        options = RemoteOptions(concurrency=1)
        teacher = RemoteTeacher(dialect, "m", vocab=VOCAB, expected=hands.teacher, options=options)
        for step in range(3):
            teacher.score(rollouts(3, seed=seed + step), Want(sampled=True, topk=4))
    except UserError as error:
        return [str(error)]
    return []


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    say = sys.stdout.write
    say("| liar | from the start | after an honest handshake |\n|---|---|---|\n")
    found = total = 0
    for name in LIES:
        early = found_at_handshake(name) if name not in ONLY_LATER else "(no lie yet)"
        late = found_later(name) if name not in ONLY_EARLY else "(within rounding)"
        found += early is not None and late is not None
        total += 1
        cells = [(c or "NOT FOUND").splitlines()[0][:110] for c in (early, late)]
        say(f"| {name} | {cells[0]} | {cells[1]} |\n")
    heat, swap = temperature_found(False), swap_found(True)
    say(f"| temperature not applied | {heat or 'NOT FOUND'} | - |\n")
    say(f"| batch rows swapped | - | {(swap or 'NOT FOUND')[:110]} |\n")
    found += (heat is not None) + (swap is not None)
    alarms = [clean_run(seed) for seed in range(200)]
    say(f"\n{found} of {total + 2} liars found; ")
    say(f"{sum(map(bool, alarms))} false alarms in {len(alarms)} clean runs.\n")
    for accused in filter(None, alarms):
        say(f"  {accused[0]}\n")


if __name__ == "__main__":
    main()
