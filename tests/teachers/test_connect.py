"""Which losses a server can serve, and the message where it cannot."""

from __future__ import annotations

import threading

import httpx2
import numpy as np
import pytest

from opd import config
from opd.errors import UserError
from opd.run.console import Console
from opd.setup import remote_teacher
from opd.setup.objective import make_objective, resolve_support
from opd.teachers.handshake import HandshakeInputs, run_handshake
from opd.teachers.opd_api import OpdDialect, is_opd
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
)
from opd.types import Kind

STOCK = frozenset({Kind.SAMPLED, Kind.TOPK})
EXACT = STOCK | {Kind.SUPPORT}


def run_of(teacher=None, **loss):
    return config.parse(
        {
            "student": {"model": "s"},
            "teacher": teacher or {"url": "http://127.0.0.1:1/v1", "model": "t"},
            "prompts": {"path": "p"},
            "loss": loss,
            "output": {"dir": "runs/x"},
        }
    )


def refusal(kinds, **loss) -> str:
    with pytest.raises(UserError) as caught:
        remote_teacher.require_kinds(make_objective(run_of(**loss)), kinds)
    return str(caught.value)


def test_student_chosen_ids_a_server_cannot_score_are_refused_with_the_choices():
    words = refusal(STOCK)
    for choice in ("sampled", "teacher_topk", "tail", "opd serve-teacher", "support=auto"):
        assert choice in words
    remote_teacher.require_kinds(make_objective(run_of()), EXACT)
    for support in ("sampled", "teacher_topk"):
        remote_teacher.require_kinds(make_objective(run_of(support=support)), STOCK)


def test_whole_distributions_and_entropies_are_refused_where_nobody_sends_them():
    assert "teacher.model without teacher.url" in refusal(EXACT, support="full")
    terms = {"entropy_forward_kl": 0.8}
    assert "opd serve-teacher" in refusal(STOCK, support="teacher_topk", terms=terms)


def test_auto_is_what_the_teacher_can_serve(capsys):
    for kinds, support, mode in (
        (EXACT, "student_topk", "paper"),
        (STOCK, "teacher_topk", "tail"),
    ):
        loss = resolve_support(run_of(support="auto"), kinds, Console("plain")).loss
        assert (loss.support, loss.mode) == (support, mode)
    assert "cannot score the student's own tokens" in capsys.readouterr().out


def test_the_documented_route_for_chosen_ids_is_found_by_asking():
    clock = FakeClock()
    for offered in (False, True):
        fake = FakeVllmServer(letter_model(), scores_chosen_ids=offered, clock=clock)
        assert (Kind.SUPPORT in VllmDialect(fake_client(fake, clock), "m").kinds) == offered


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("opd-teacher/1", r"speaks opd-teacher/1, this side opd-teacher/\d+\. Install one version"),
        ("other", "does not speak opd-teacher"),
    ],
)
def test_a_server_of_another_version_is_named(protocol, words):
    http = fake_client(FakeTeacherServer(letter_model(), VOCAB, protocol=protocol), FakeClock())
    assert is_opd(http) == protocol.startswith("opd-teacher/")
    with pytest.raises(UserError, match=words):
        OpdDialect(http)


@pytest.mark.parametrize(
    ("change", "topk", "max_length", "words"),
    [
        ({"max_logprobs": 3}, 4, 100, "--max-logprobs 4"),
        ({"max_len": 101}, 4, 101, "--max-model-len"),
        ({"tokenize": lambda text: encode_letters(text)[::-1]}, 4, 100, "student's family"),
        ({"logp": lambda ids: np.full((len(ids), VOCAB), -np.log(VOCAB))}, 4, 100, "same score"),
    ],
)
def test_each_failed_probe_names_its_fix(change, topk, max_length, words):
    clock = FakeClock()
    fake = FakeVllmServer(change.pop("logp", letter_model()), clock=clock, **change)
    inputs = HandshakeInputs(VOCAB, encode_letters, topk=topk, max_length=max_length, eos=(EOS,))
    hands = run_handshake(VllmDialect(fake_client(fake, clock), "m"), inputs)
    with pytest.raises(UserError, match=words):
        hands.require("url")


def test_a_handshake_asks_little():
    clock = FakeClock()
    fake = FakeVllmServer(letter_model(), clock=clock)
    dialect = VllmDialect(fake_client(fake, clock), "m")
    hands = run_handshake(dialect, HandshakeInputs(VOCAB, encode_letters, topk=4))
    assert not hands.fatal
    assert sum(path == "/v1/completions" for path, _ in fake.calls) <= 32 + 8  # eight at once


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"url": "http://x/v1", "model": "t", "api_key_env": "sk-not-a-name"}, "NAME"),
        ({"url": "http://x/v1", "model": "t", "api_key": "sk-secret"}, "unknown key"),
        ({"url": "http://x/v1"}, "teacher.model: required"),
        ({"model": "t", "cache": {"dir": "d"}}, "offline=true"),
    ],
)
def test_a_teacher_section_that_is_wrong_is_refused(teacher, words):
    with pytest.raises(UserError, match=words) as caught:
        run_of(teacher)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("rollout", "words"),
    [
        ({"model": "m"}, "rollout.url"),
        ({"url": "http://x/v1", "model": "m", "temperature": 0.7}, "drift"),
        ({"url": "http://x/v1", "model": "m", "path": "p"}, "rollout.path"),
        ({"url": "http://x/v1"}, "rollout.model"),
    ],
)
def test_a_rollout_section_that_is_wrong_is_refused(rollout, words):
    data = config.dump(run_of()) | {"rollout": rollout}
    with pytest.raises(UserError, match=words):
        config.parse(data)


class StickyBalancer(httpx2.BaseTransport):
    """Two replicas behind one address: a client's next request goes where its last one went, and
    only requests that are under way together are spread."""

    def __init__(self, *replicas):
        self.replicas, self.together = replicas, 0

    def handle_request(self, request):
        if not threading.current_thread().name.startswith("replica"):
            return self.replicas[0].handle_request(request)
        self.together += 1
        return self.replicas[self.together % len(self.replicas)].handle_request(request)


@pytest.mark.parametrize(("smoothing", "level"), [((0.3, 0.3), "ok"), ((0.3, 3.0), "fatal")])
def test_replicas_of_other_weights_are_found_behind_a_balancer_that_hides_them(smoothing, level):
    replicas = [FakeVllmServer(letter_model(smoothing=s)) for s in smoothing]
    http = fake_client(StickyBalancer(*replicas), FakeClock())
    inputs = HandshakeInputs(VOCAB, encode_letters, topk=4, max_length=200, eos=[EOS])
    result = run_handshake(VllmDialect(http, "m"), inputs)
    (probe,) = [p for p in result.probes if p.name == "replicas"]
    assert probe.level == level, probe.message
    assert ("different weights" in probe.message) == (level == "fatal")
