"""Completions of a vLLM server: what is asked, what is taken, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from opd.errors import UserError
from opd.http import Endpoint, Http, Limits, Timer
from opd.models.lm import add_lora
from opd.run.bad_answers import Quarantine
from opd.samplers.completions import ServerLost
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.samplers.replay import ReplaySampler
from opd.samplers.sampling_server import SamplingServer
from opd.samplers.vllm import StatisticsSampler, VllmSampler, request_seed
from opd.samplers.weight_sync import Destination, WeightSync
from opd.teachers.local import LocalTeacher
from opd.testing import FakeVllmServer, load_weights_for, model_logp, tiny_tokenizer
from opd.testing.clients import raw_response
from opd.testing.language import completion_logp
from opd.training.distributed import RankZeroSampler
from support.ranks import run_as_rank_zero

K, LENGTH = 3, 6
STOP = frozenset(range(1, 9))  # of a random model, so that some completions stop


def server_for(lm, **options) -> FakeVllmServer:
    """A rollout server of the model "base", which takes the weights of `lm`."""
    return FakeVllmServer(model_logp(lm), "base", load=load_weights_for(lm), **options)


def sampler_of(server, lm, tmp_path, *, decoding=None, **changes) -> VllmSampler:
    http = Http(
        Endpoint("http://rollouts.test", "rollout server", "rollout.url"),
        limits=Limits(attempts=2, wait_initial=0.0),
        timer=Timer(),
        transport=server,
    )
    sampling = SamplingServer(http, "base", **({"concurrency": 3} | changes))
    weights = WeightSync(sampling, lm, tiny_tokenizer(), Destination(tmp_path / "sync"))
    decoding = decoding or Decoding(LENGTH)
    return VllmSampler(sampling, decoding, stop=STOP, logp=True, weights=weights)


@pytest.fixture
def lora(make_lm):
    return add_lora(make_lm(), rank=2, alpha=4, target_modules="all-linear", seed=0)


def completions(server) -> list[dict]:
    """Bodies of the requests for completions, without the checks of weights."""
    return [b for path, b in server.calls if path == "/v1/completions" and "n" in b]


def test_rollouts_carry_ids_and_logprobs(make_lm, make_prompts, tmp_path):
    lm = make_lm()
    sampler = sampler_of(server_for(lm), lm, tmp_path)
    sampler.sync(4)
    rollouts = sampler.sample(make_prompts(3, 5), n=3, key=(0, 1, 4))
    expected = [(p, s) for p in (0, 1) for s in range(3)]
    assert [(r.prompt.index, r.sample) for r in rollouts] == expected
    assert {r.finish for r in rollouts} == {"stop", "length"}
    for r in rollouts:
        assert r.version == 4
        assert r.finish == ("stop" if int(r.ids[-1]) in STOP else "length")
        logp = completion_logp(model_logp(lm), r)
        sampled = np.take_along_axis(logp, r.ids[:, None].astype(int), 1)[:, 0]
        np.testing.assert_allclose(r.logp, sampled, rtol=1e-6)
        assert r.topk_ids.shape == (len(r), 0)
        assert all(math.isnan(x) for x in r.entropy)


def test_entropies_and_top_tokens_are_of_the_model_in_this_process(make_lm, make_prompts, tmp_path):
    lm = make_lm()
    asking = sampler_of(server_for(lm), lm, tmp_path)
    sampler = StatisticsSampler(asking, lm, LocalTeacher(lm), K)
    sampler.sync(2)
    rollouts = sampler.sample(make_prompts(3, 5), n=2, key=(0, 1, 2))
    for r in rollouts:
        logp = completion_logp(model_logp(lm), r)
        np.testing.assert_array_equal(r.topk_ids, np.argsort(-logp, 1)[:, :K])
        np.testing.assert_allclose(r.topk_logp, -np.sort(-logp, 1)[:, :K], rtol=1e-6)
        np.testing.assert_allclose(r.entropy, -(np.exp(logp) * logp).sum(1), rtol=1e-6)
        assert r.version == 2


def test_a_request_has_n_completions_and_one_log_prob_per_token(make_lm, make_prompts, tmp_path):
    lm = make_lm()
    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path)
    sampler.sync(0)
    sampler.sample(make_prompts(3, 5), n=4, key=(0,))
    asked = completions(server)
    assert [body["n"] for body in asked] == [4, 4]
    assert {body["logprobs"] for body in asked} == {0}
    sampler.logp = False
    (rollout,) = sampler.sample(make_prompts(3), n=1, key=(0,))
    assert "logprobs" not in completions(server)[-1]
    assert np.isnan(rollout.logp).all()


def test_a_rollout_depends_on_its_key_alone(make_lm, make_prompts, tmp_path):
    lm = make_lm()
    sampler = sampler_of(server_for(lm), lm, tmp_path)
    sampler.sync(0)
    prompts = make_prompts(3, 5, 4)
    together = sampler.sample(prompts, n=2, key=(0, 1, 2))
    alone = sampler.sample(prompts[1:2], n=1, key=(0, 1, 2))
    np.testing.assert_array_equal(together[2].ids, alone[0].ids)
    keys = [(0, 1, 2), (0, 1, 3), (1, 1, 2)]
    assert len({request_seed(k, p, s) for k in keys for p in range(3) for s in range(4)}) == 36


def test_a_prompt_that_comes_twice_is_continued_in_other_ways(make_lm, make_prompts, tmp_path):
    lm = make_lm()
    sampler = sampler_of(server_for(lm), lm, tmp_path)
    sampler.sync(0)
    (prompt,) = make_prompts(5)
    rollouts = sampler.sample([prompt, prompt], n=2, key=(0,))
    assert [r.sample for r in rollouts] == [0, 1, 2, 3]
    assert len({tuple(r.ids.tolist()) for r in rollouts}) > 2


def test_greedy_answers_are_those_of_the_model_in_this_process(make_lm, make_prompts, tmp_path):
    lm, greedy = make_lm(), Decoding(LENGTH, temperature=0.0)
    served = sampler_of(server_for(lm), lm, tmp_path, decoding=greedy)
    served.sync(0)
    local = HFSampler(lm, greedy, stop=STOP, capture=1)
    prompts = make_prompts(3, 5, 4)
    for a, b in zip(
        served.sample(prompts, n=1, key=(0,)), local.sample(prompts, n=1, key=(0,)), strict=True
    ):
        np.testing.assert_array_equal(a.ids, b.ids)
        assert a.finish == b.finish


def _stale(answer, choice):
    answer["model"] = "opd-student-0"


def _cut(answer, choice):
    choice["token_ids"] = choice["token_ids"][:1]
    choice["logprobs"]["token_logprobs"] = [-1.0]


SPOILS = {
    "stale weights": _stale,
    "exactly 1 completions": lambda a, c: a.update(choices=[c, c]),
    "another prompt": lambda a, c: c.update(prompt_token_ids=[1, 2]),
    "no token_ids": lambda a, c: c.pop("token_ids"),
    "0 tokens": lambda a, c: c.update(token_ids=[]),
    "does not end where": _cut,
    "above 0": lambda a, c: c["logprobs"].update(token_logprobs=[0.5] * len(c["token_ids"])),
    "not a number": lambda a, c: c["logprobs"].update(token_logprobs=[None] * len(c["token_ids"])),
    "of the tokens are missing": lambda a, c: c["logprobs"].update(token_logprobs=[-1.0]),
}


@pytest.mark.parametrize("words", SPOILS)
def test_a_wrong_answer_is_refused_after_a_second_try(words, make_lm, make_prompts, tmp_path):
    lm = make_lm()
    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path, concurrency=1)
    sampler.sync(0)
    server.edit_completion = SPOILS[words]
    with pytest.raises(UserError, match=words):
        sampler.sample(make_prompts(4), n=1, key=(0, 1, 0))
    assert len(completions(server)) == 2


@pytest.mark.parametrize("token", [-1, 40, 10**30])
def test_a_token_that_the_student_does_not_have_is_refused(token, make_lm, make_prompts, tmp_path):
    """An id beyond the vocabulary ended in an IndexError of the embedding."""
    lm = make_lm()
    assert lm.vocab == 40
    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path)
    sampler.sync(0)
    server.edit_completion = lambda a, c: c["token_ids"].__setitem__(0, token)
    sampler = StatisticsSampler(sampler, lm, LocalTeacher(lm), K)
    with pytest.raises(UserError, match=rf"token {token}\b.*0 to 39"):
        sampler.sample(make_prompts(3), n=2, key=(0,))


def test_such_a_token_in_the_check_of_the_weights_says_that_they_are_others(make_lm, tmp_path):
    lm = make_lm()
    server = server_for(lm)
    server.edit_completion = lambda a, c: c["token_ids"].__setitem__(0, 40)
    with pytest.raises(UserError, match=r"generated token 40.*0 to 39"):
        sampler_of(server, lm, tmp_path).sync(0)


def test_choices_of_another_number_or_order_of_indices(make_lm, make_prompts, tmp_path):
    lm = make_lm()
    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path)
    sampler.sync(0)
    prompts = make_prompts(4)
    right = sampler.sample(prompts, n=3, key=(0,))
    server.edit_completion = lambda answer, choice: answer["choices"].reverse()  # three times
    turned = sampler.sample(prompts, n=3, key=(0,))
    assert [r.ids.tolist() for r in turned] == [r.ids.tolist() for r in right]
    server.edit_completion = lambda answer, choice: choice.update(index=0)
    with pytest.raises(UserError, match="exactly 3 completions"):
        sampler.sample(prompts, n=3, key=(0,))


def test_replay_hands_out_what_was_recorded(make_prompts, tmp_path, make_lm):
    lm = make_lm()
    sampler = StatisticsSampler(sampler_of(server_for(lm), lm, tmp_path), lm, LocalTeacher(lm), K)
    sampler.sync(0)
    prompts = make_prompts(3, 5)
    given = sampler.sample(prompts, n=4, key=(0, 1, 0))
    replay = ReplaySampler(given, Path("file"), capture=K, max_length=LENGTH)
    replay.sync(9)
    first, second, third = (replay.sample(prompts, n=2, key=(0, 1, s)) for s in range(3))
    expected = [given[0], given[1], given[4], given[5]]
    for a, b in zip(first, expected, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
        assert a.version == 9
    assert not np.array_equal(first[0].ids, second[0].ids)
    np.testing.assert_array_equal(first[0].ids, third[0].ids)
    with pytest.raises(UserError, match=r"no rollout of prompt.*output\.rollout_sample"):
        replay.sample(make_prompts(7, seed=5), n=1, key=(0, 1, 0))
    with pytest.raises(UserError, match=r"loss\.k"):
        ReplaySampler(given, Path("file"), capture=K + 1, max_length=LENGTH)


def test_a_wrong_completion_is_kept_as_it_came(make_lm, make_prompts, tmp_path):
    lm = make_lm()
    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path, quarantine=Quarantine(tmp_path / "wrong"))
    sampler.sync(0)
    server.edit_completion = lambda answer, choice: choice.update(token_ids=[])
    with pytest.raises(UserError, match="kept in"):
        sampler.sample(make_prompts(3), n=1, key=(0,))
    (answered,) = (tmp_path / "wrong").glob("*/answered-0")
    assert json.loads(answered.read_bytes())["choices"][0]["token_ids"] == []


def test_one_process_speaks_with_a_rollout_server(make_lm, make_prompts, tmp_path):
    lm, prompts = make_lm(), make_prompts(3, 5)
    servers = [server_for(lm) for _ in range(3)]
    samplers = [sampler_of(s, lm, tmp_path) for s in servers]

    def led(ranks):
        return RankZeroSampler(samplers[ranks.rank], ranks, lm)

    assert run_as_rank_zero(lambda ranks: led(ranks).sync(4), 3) is None
    rollouts = run_as_rank_zero(lambda ranks: led(ranks).sample(prompts, n=2, key=(0,)), 3)
    alone = samplers[0].sample(prompts, n=2, key=(0,))
    assert [len(s.calls) > 0 for s in servers] == [True, False, False]
    for a, b in zip(alone, rollouts, strict=True):
        assert (a.prompt, a.sample, a.version) == (b.prompt, b.sample, b.version)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.logp, b.logp)


def test_a_server_that_is_paused_for_a_moment_is_asked_again(make_lm, make_prompts, tmp_path):
    lm = make_lm()
    paused = [503, 503]

    def pause(server, request):
        if request.url.path == "/v1/completions" and paused:
            return raw_response(b"paused", paused.pop())
        return None

    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path)
    sampler.sync(0)
    server.fault = pause
    assert len(sampler.sample(make_prompts(3), n=2, key=(0,))) == 2
    assert not paused


def test_a_thread_beside_an_update_sends_no_weights(make_lm, make_prompts, tmp_path):
    """The student changes under its hands; whoever waits for it sends them."""
    lm = make_lm()
    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path)
    sampler.sync(4)
    prompts = make_prompts(3, 5)
    plain = sampler.sample(prompts, n=2, key=(0, 1, 4))
    beside = sampler.once().sample(prompts, n=2, key=(0, 1, 4))
    assert [r.ids.tolist() for r in beside] == [r.ids.tolist() for r in plain]
    server.weight_version = "started again"
    sent = len(server.calls)
    with pytest.raises(ServerLost, match="started again"):
        sampler.once().sample(prompts, n=2, key=(0, 1, 4))
    assert {path for path, _ in server.calls[sent:]} == {"/v1/completions", "/weight_info"}
