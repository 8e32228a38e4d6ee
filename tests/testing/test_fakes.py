"""The fakes that users build their own tests on do what they say."""

from __future__ import annotations

import numpy as np
import pytest

from opd.errors import UserError
from opd.http import Endpoint, Http, Transient
from opd.samplers.decoding import Decoding
from opd.samplers.sampling_server import SamplingServer
from opd.samplers.vllm import VllmSampler
from opd.teachers.opd_api import OpdDialect, is_opd
from opd.teachers.vllm_api import VllmDialect
from opd.testing import (
    LETTER_EOS,
    LETTER_VOCAB,
    TINY_VOCAB,
    FakeClock,
    FakeSampler,
    FakeTeacher,
    FakeTeacherServer,
    FakeVllmServer,
    bigram_model,
    fake_client,
    letter_model,
    random_rollouts,
    serve_on_loopback,
    token_logp,
)
from opd.types import Kind, Prompt, Want


def test_a_sampler_returns_its_completions_with_the_models_statistics():
    logp = letter_model()
    sampler = FakeSampler({0: [[3, LETTER_EOS], [4, 5]]}, stop={LETTER_EOS}, logp=logp, capture=3)
    sampler.sync(7)
    prompt = Prompt(0, (1, 2), "")
    rollouts = sampler.sample([prompt], n=3, key=(0,))
    assert [r.ids.tolist() for r in rollouts] == [[3, LETTER_EOS], [4, 5], [3, LETTER_EOS]]
    assert [(r.sample, r.finish, r.version) for r in rollouts] == [
        (0, "stop", 7),
        (1, "length", 7),
        (2, "stop", 7),
    ]
    np.testing.assert_allclose(rollouts[1].logp, token_logp(logp, rollouts[1]), rtol=1e-6)
    best = -np.sort(-logp([1, 2, 4])[1:], 1)[:, :3]
    np.testing.assert_allclose(rollouts[1].topk_logp, best, rtol=1e-6)
    assert [len(r) for r in sampler.sample([prompt], n=2, key=(0,), limit=1)] == [1, 1]
    assert sampler.sampled == 5


def test_a_sampler_without_a_model_records_no_top_tokens():
    (rollout,) = FakeSampler({5: [[1]]}).sample([Prompt(5, (2,), "")], n=1, key=(0,))
    assert rollout.topk_ids.shape == (1, 0)
    with pytest.raises(ValueError, match="logp"):
        FakeSampler({}, capture=1)


def test_a_teacher_counts_and_gives_what_it_says_it_gives():
    teacher = FakeTeacher(letter_model(), kinds=[Kind.SAMPLED])
    rollouts = random_rollouts(3)
    positions = [np.array([0])] * 3
    scores = teacher.score(rollouts, Want(sampled=True, full=positions))
    assert (teacher.kinds, teacher.scored) == ({Kind.SAMPLED}, 3)
    assert scores[0].hidden is None
    np.testing.assert_array_equal(scores[0].positions, [0])


def test_fake_servers_answer_over_a_real_socket():
    logp, rollouts, want = letter_model(), random_rollouts(3), Want(sampled=True, topk=3)
    teacher = FakeTeacher(logp)
    with (
        serve_on_loopback(FakeTeacherServer(logp, LETTER_VOCAB)) as opd_url,
        serve_on_loopback(FakeVllmServer(logp)) as vllm_url,
    ):
        https = [Http(Endpoint(url, "teacher", "teacher.url")) for url in (opd_url, vllm_url)]
        assert [is_opd(http) for http in https] == [True, False]
        dialects = [OpdDialect(https[0]), VllmDialect(https[1], "m")]
        for dialect in dialects:
            answer = dialect.score(rollouts, want)
            for scores, expected in zip(answer, teacher.score(rollouts, want), strict=True):
                np.testing.assert_allclose(scores.sampled, expected.sampled, atol=1e-6)
                np.testing.assert_array_equal(scores.topk_ids, expected.topk_ids)
            dialect.http.close()


def test_a_server_that_breaks_off_over_a_real_socket_is_transient():
    def reset(server, request):
        raise server_error

    from httpx2 import ReadError

    server_error = ReadError("reset")
    with serve_on_loopback(FakeVllmServer(letter_model(), fault=reset)) as url:
        http = Http(Endpoint(url, "teacher", "teacher.url"))
        with pytest.raises(Transient):
            http.get_json("/v1/models", once=True)
        http.close()


def test_a_vllm_server_samples_from_its_model_by_the_requests_seed():
    logits = np.random.default_rng(0).normal(0, 2, (TINY_VOCAB, TINY_VOCAB))
    server = FakeVllmServer(bigram_model(logits))
    sampling = SamplingServer(fake_client(server, FakeClock()), "m")
    sampler = VllmSampler(sampling, Decoding(400), stop=frozenset({1}), logp=True)
    (first,) = sampler.sample([Prompt(0, (3,), "")], n=1, key=(0,))
    (again,) = sampler.sample([Prompt(0, (3,), "")], n=1, key=(0,))
    (other,) = sampler.sample([Prompt(0, (3,), "")], n=1, key=(1,))
    assert first.ids.tolist() == again.ids.tolist() != other.ids.tolist()
    np.testing.assert_allclose(first.logp, token_logp(server.logp, first), rtol=1e-6)
    assert first.finish == ("stop" if first.ids[-1] == 1 else "length")


def test_a_fault_replaces_an_answer_and_calls_are_recorded():
    server = FakeVllmServer(letter_model(), model="other")
    http = fake_client(server, FakeClock())
    with pytest.raises(UserError, match="serves other"):
        VllmDialect(http, "m")
    assert server.calls == [("/v1/models", {})]
