"""Wrong answers are kept as they came: bounded, named in the error, without the key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
import pytest

from opd.errors import UserError
from opd.http import Endpoint, Http
from opd.run.bad_answers import Exchange, Quarantine
from opd.teachers.dialect import TeacherRecord
from opd.teachers.handshake import HandshakeInputs, run_handshake
from opd.teachers.remote import RemoteTeacher
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
)
from opd.testing.clients import raw_response
from opd.types import Want


def teacher_of(fake: FakeVllmServer, clock: FakeClock, quarantine: Quarantine) -> RemoteTeacher:
    dialect = VllmDialect(fake_client(fake, clock), "m")
    return RemoteTeacher(
        dialect, "m", vocab=VOCAB, expected=TeacherRecord(dialect.identity()), quarantine=quarantine
    )


def above_zero(server, ids, rows, choice) -> None:
    rows[-1] = {k: v | {"logprob": 0.5} for k, v in rows[-1].items()}


def test_a_lie_is_kept_with_its_question_and_the_error_says_where(tmp_path):
    clock = FakeClock()
    fake = FakeVllmServer(letter_model(), clock=clock)
    teacher = teacher_of(fake, clock, Quarantine(tmp_path / "wrong"))
    fake.edit_scores = above_zero
    (rollout,) = random_rollouts(1)
    with pytest.raises(UserError, match="wrong answer twice") as caught:
        teacher.score([rollout], Want(sampled=True))
    folder = Path(re.search(r"kept in (\S+)\.", str(caught.value))[1])
    assert folder.parent == tmp_path / "wrong"
    why = json.loads((folder / "why.json").read_text())
    assert why["why"].startswith("sampled has a log-prob of 0.5 > 0")
    assert why["exchanges"][0]["path"] == "/v1/completions"
    asked = json.loads((folder / "asked-0").read_bytes())
    answered = json.loads((folder / "answered-0").read_bytes())
    assert asked["prompt"] == [*rollout.prompt.ids, *rollout.ids.tolist()]
    last = answered["choices"][0]["prompt_logprobs"][-1]
    assert {entry["logprob"] for entry in last.values()} == {0.5}


def test_before_there_is_a_run_folder_the_handshake_quotes_the_lie():
    clock = FakeClock()
    fake = FakeVllmServer(letter_model(), clock=clock)
    dialect = VllmDialect(fake_client(fake, clock), "m")
    fake.edit_scores = above_zero
    hands = run_handshake(dialect, HandshakeInputs(VOCAB, encode_letters, topk=2))
    with pytest.raises(UserError, match=r'The answer begins: \{"model": "m"'):
        hands.require("url")


def test_an_honest_teacher_leaves_nothing(tmp_path):
    clock = FakeClock()
    teacher = teacher_of(
        FakeVllmServer(letter_model(), clock=clock), clock, Quarantine(tmp_path / "wrong")
    )
    teacher.score(random_rollouts(5), Want(sampled=True, topk=3))
    assert not (tmp_path / "wrong").exists()


def test_the_folder_stays_small_whatever_comes(tmp_path):
    quarantine = Quarantine(tmp_path / "wrong", max_folder_bytes=20_000, max_file_bytes=3_000)
    messages = [
        quarantine.keep([Exchange("/x", b"q" * 9_000, bytes([i]) * 9_000)], f"reason {i}")
        for i in range(10)
    ]
    assert "kept in" in messages[0]
    assert "is full" in messages[-1]
    size = sum(p.stat().st_size for p in (tmp_path / "wrong").rglob("*") if p.is_file())
    assert size < 25_000
    again = quarantine.keep([Exchange("/x", b"q" * 9_000, bytes([0]) * 9_000)], "reason 0")
    assert again == messages[0], "the same lie twice is one entry"


def test_a_folder_that_cannot_be_written_does_not_hide_the_lie(tmp_path):
    (tmp_path / "wrong").write_text("a file")
    message = Quarantine(tmp_path / "wrong").keep([Exchange("/x", b"q", b"a")], "reason")
    assert "could not be kept" in message


def test_the_key_is_in_no_file_even_if_the_server_repeats_it():
    class Echo(httpx2.BaseTransport):
        def handle_request(self, request):
            return raw_response(
                b'{"you said": "' + request.headers["authorization"].encode() + b'"}'
            )

    http = Http(Endpoint("http://127.0.0.1:1", "t", "teacher.url", "sk-1"), transport=Echo())
    with http.capture() as exchanges:
        http.post_json("/v1/completions", {"a": 1})
    http.post_json("/v1/completions", {"a": 2})
    assert exchanges == [("/v1/completions", b'{"a":1}', b'{"you said": "Bearer ***"}')]
