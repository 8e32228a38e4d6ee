"""Every way an HTTP teacher fails, in three phases, once and for ever.

A case ends in one of two good ways: right scores, or an error that says what is wrong. Silence
(wrong scores without an error) and hanging (more virtual time than a verdict may take) are bugs.
`PYTHONPATH=tests python tests/support/teacher_faults.py` prints a table.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx2
import numpy as np
import tenacity.nap

from opd.errors import UserError
from opd.http import Transient
from opd.teachers.handshake import HandshakeInputs, run_handshake
from opd.teachers.remote import RemoteOptions, RemoteTeacher
from opd.teachers.vllm_api import VllmDialect
from opd.testing import (
    LETTER_VOCAB as VOCAB,
)
from opd.testing import (
    FakeClock,
    FakeVllmServer,
    encode_letters,
    fake_client,
    letter_model,
    random_rollouts,
    token_logp,
)
from opd.testing.clients import StreamedBody, raw_response
from opd.types import Want

PHASES = ("handshake", "middle", "last")
PATIENCE = 120.0
VERDICT = 900.0  # virtual seconds: all tries of all requests, and the patience
STEPS, PER_STEP = 3, 4
Fault = Callable[[FakeVllmServer, httpx2.Request], httpx2.Response | None]


def raising(error: Exception, seconds: float = 0.0) -> Fault:
    def fault(server: FakeVllmServer, request: httpx2.Request) -> httpx2.Response:
        server.clock.sleep(seconds)
        raise error

    return fault


def status(code: int, body: bytes = b"", headers: dict | None = None) -> Fault:
    answer = body or b'{"error": {"message": "said the server"}}'
    return lambda server, request: raw_response(answer, code, headers)


def page(body: bytes, headers: dict | None = None) -> Fault:
    return lambda server, request: raw_response(body, 200, headers)


def broken_off(fraction: float, error: Exception | None = None) -> Fault:
    """The honest answer up to a fraction of its bytes, then an error, or the end."""

    def fault(server: FakeVllmServer, request: httpx2.Request) -> httpx2.Response:
        body = b"".join(server.answer(request).iter_raw())
        cut = max(1, min(len(body) - 1, int(len(body) * fraction)))

        def parts() -> Iterator[bytes]:
            yield body[:cut]
            if error is not None:
                raise error

        return httpx2.Response(200, stream=StreamedBody(parts()))

    return fault


def dripping(server: FakeVllmServer, request: httpx2.Request) -> httpx2.Response:
    body = b"".join(server.answer(request).iter_raw())

    def parts() -> Iterator[bytes]:
        for i in range(len(body)):
            server.clock.sleep(1.0)
            yield body[i : i + 1]

    return httpx2.Response(200, stream=StreamedBody(parts()))


def endless(server: FakeVllmServer, request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, stream=StreamedBody(b"x" * 2**16 for _ in range(2**20)))


def edited(change: Callable[[bytes], bytes]) -> Fault:
    """The honest answer with its bytes changed."""
    return lambda server, request: raw_response(change(b"".join(server.answer(request).iter_raw())))


def number(literal: bytes) -> Fault:
    import re

    return edited(lambda body: re.sub(rb'"logprob": -?[0-9.e-]+', b'"logprob": ' + literal, body))


def other_model(server: FakeVllmServer, request: httpx2.Request) -> None:
    server.logp = OTHER


def renamed(server: FakeVllmServer, request: httpx2.Request) -> None:
    server.model = "another-model"


def leaping(server: FakeVllmServer, request: httpx2.Request) -> None:
    server.clock.sleep(3600.0)


OTHER = letter_model(7, corpus="zebra quartz, lynx. " * 40)
R, C = httpx2.ReadError, httpx2.ConnectError
FAULTS: dict[str, Fault] = {
    "connection refused": raising(C("[Errno 111] Connection refused")),
    "name not known": raising(C("[Errno -2] Name or service not known"), 5),
    "connect timeout": raising(httpx2.ConnectTimeout("timed out"), 10),
    "certificate invalid": raising(C("[SSL: CERTIFICATE_VERIFY_FAILED]")),
    "no route": raising(C("[Errno 113] No route to host")),
    "closed without answer": raising(httpx2.RemoteProtocolError("Server disconnected")),
    "reset at the first byte": broken_off(0, R("Connection reset by peer")),
    "reset half way": broken_off(0.5, R("Connection reset by peer")),
    "reset at the last byte": broken_off(1, R("Connection reset by peer")),
    "content-length too long": broken_off(1, httpx2.RemoteProtocolError("peer closed")),
    "silent": raising(httpx2.ReadTimeout("timed out"), 30),
    "one byte a second": dripping,
    "cannot send": raising(httpx2.WriteError("[Errno 32] Broken pipe")),
    "send timeout": raising(httpx2.WriteTimeout("timed out"), 30),
    "garbled HTTP": raising(httpx2.RemoteProtocolError("illegal status line")),
    "408": status(408),
    "425": status(425),
    "429": status(429),
    "429, come back in 2 s": status(429, headers={"retry-after": "2"}),
    "429, come back tomorrow": status(429, headers={"retry-after": "86400"}),
    "429, come back on a date": status(429, headers={"retry-after": "Fri, 31 Dec 2027 23:59:59"}),
    "500": status(500),
    "500 with -inf words": status(500, b"Out of range float values are not JSON compliant: -inf"),
    "502 page of a proxy": status(502, b"<html><h1>Bad Gateway</h1></html>"),
    "503": status(503),
    "504": status(504),
    "400": status(400),
    "401": status(401),
    "402": status(402),
    "403": status(403),
    "404": status(404),
    "405": status(405),
    "409": status(409),
    "413": status(413),
    "415": status(415),
    "422": status(422, b'{"detail": [{"msg": "Input should be a valid list"}]}'),
    "301 to itself": status(301, headers={"location": "http://teacher.test:8000/v1"}),
    "307 to another host": status(307, headers={"location": "http://evil.test/"}),
    "200 with a web page": page(b"<!doctype html><title>Log in</title>"),
    "200 and nothing": page(b""),
    "204": status(204, b" "),
    "JSON cut off": broken_off(0.7),
    "not UTF-8": page(b'{"data": "\xff\xfe"}'),
    "NaN in JSON": number(b"NaN"),
    "Infinity in JSON": number(b"-Infinity"),
    "null for a number": number(b"null"),
    "JSON nested 100000 deep": page(b"[" * 100000 + b"]" * 100000),
    "a list instead of an object": page(b"[1, 2, 3]"),
    "null": page(b"null"),
    "an error under 200": page(b'{"error": {"message": "engine died"}}'),
    "no choices": page(b'{"choices": [], "data": [{"id": "m"}]}'),
    "endless answer": endless,
    "compressed, unasked": page(b"\x1f\x8b" + b"\0" * 64, {"content-encoding": "gzip"}),
    "events instead of JSON": page(b'data: {"choices": []}\n\ndata: [DONE]\n'),
    "restarted with another model": other_model,
    "restarted under another name": renamed,
    "clock leaps an hour": leaping,
}


class Schedule:
    """A fault from the N-th request on, for some requests or for ever."""

    def __init__(self, fault: Fault, first: int, times: int | None) -> None:
        self.fault, self.first, self.times, self.seen = fault, first, times, 0

    def __call__(self, server: FakeVllmServer, request: httpx2.Request) -> httpx2.Response | None:
        self.seen += 1
        due = self.seen > self.first and (
            self.times is None or self.seen <= self.first + self.times
        )
        return self.fault(server, request) if due else None


@dataclass(frozen=True)
class Verdict:
    """How a case ended: "survived", "named", "SILENT" or "HUNG"."""

    ended: str
    message: str
    virtual: float
    real: float


class _Nap:
    """What tenacity sleeps with."""

    def __init__(self, clock: FakeClock) -> None:
        self.sleep = clock.sleep


def attempt(server: FakeVllmServer, faults: dict[int, Schedule]) -> None:
    """A handshake and three steps; `faults` by phase. Raises what the user would see."""
    server.fault = faults.get(-1)
    http = fake_client(server, server.clock, wait_initial=0.5)
    try:
        dialect = VllmDialect(http, "m")
        handshake = run_handshake(dialect, HandshakeInputs(VOCAB, encode_letters, topk=4))
    except Transient as error:
        raise UserError(f"no teacher answers: {error}") from None
    handshake.require(http.url)
    # Requests in a known order, so that a fault hits the one it is meant for.
    options = RemoteOptions(concurrency=1, patience=PATIENCE, notify=lambda text: None)
    teacher = RemoteTeacher(dialect, "m", vocab=VOCAB, expected=handshake.teacher, options=options)
    for step in range(STEPS):
        if step in faults:
            server.fault = faults[step]
        rollouts = random_rollouts(PER_STEP, seed=step)
        answer = teacher.score(rollouts, Want(sampled=True, topk=4))
        for rollout, scores in zip(rollouts, answer, strict=True):
            if not np.allclose(scores.sampled, token_logp(HONEST, rollout), atol=1e-5):
                raise AssertionError("wrong scores")


HONEST = letter_model(0)


def case(name: str, phase: str, times: int | None) -> Verdict:
    """Run one fault in one phase."""
    clock = FakeClock()
    tenacity.nap.time, kept = _Nap(clock), tenacity.nap.time
    # In the last step the fault meets the last request but two: scores, identity, canary remain.
    step, first = {"handshake": (-1, 0), "middle": (1, 1), "last": (2, PER_STEP - 1)}[phase]
    if name.startswith("restarted") and phase == "handshake":
        first = 4  # models, support, identity and the canary are asked by then
    schedule = Schedule(FAULTS[name], first, times)
    began = time.monotonic()
    try:
        attempt(FakeVllmServer(HONEST, clock=clock), {step: schedule})
        ended, message = "survived", ""
    except UserError as error:
        ended, message = "named", str(error)
    except AssertionError as error:
        ended, message = "SILENT", str(error)
    finally:
        tenacity.nap.time = kept
    real = time.monotonic() - began
    allowed = VERDICT + (3600.0 * 40 if name == "clock leaps an hour" else 0.0)
    if clock.time > allowed or real > 20:
        ended = "HUNG"
    return Verdict(ended, message, clock.time, real)


def main() -> None:
    """Print the table."""
    write = sys.stdout.write
    write(f"| fault | {' | '.join(f'{p}, once | {p}, for ever' for p in PHASES)} |\n")
    write("|---|" + "---|" * (2 * len(PHASES)) + "\n")
    counts: dict[str, int] = {}
    max_virtual = 0.0
    for name in FAULTS:
        row = []
        for phase in PHASES:
            for times in (1, None):
                verdict = case(name, phase, times)
                counts[verdict.ended] = counts.get(verdict.ended, 0) + 1
                if "leaps" not in name:
                    max_virtual = max(max_virtual, verdict.virtual)
                row.append(verdict.ended)
        write(f"| {name} | {' | '.join(row)} |\n")
    write(f"\n{len(FAULTS)} kinds x {len(PHASES)} phases x (once, for ever): {counts}; ")
    write(f"longest verdict {max_virtual:.0f} virtual seconds.\n")


if __name__ == "__main__":
    main()
