"""Rollouts of an SGLang server, and the student's weights on their way to it (against a fake)."""

from __future__ import annotations

import numpy as np
import pytest

from opd.errors import UserError
from opd.http import Endpoint, Http, Limits
from opd.models.lm import add_lora
from opd.samplers.decoding import Decoding
from opd.samplers.sampling_server import SamplingServer
from opd.samplers.sglang_server import SglangServer
from opd.samplers.vllm import VllmSampler
from opd.samplers.weight_sync import Destination, WeightSync
from opd.setup.samplers import kind_of_server
from opd.testing import (
    FakeSglangServer,
    FakeVllmServer,
    letter_model,
    load_weights_for,
    model_logp,
    tiny_tokenizer,
)
from opd.testing.language import completion_logp

STOP = frozenset(range(1, 9))


def http_of(server) -> Http:
    return Http(
        Endpoint("http://rollouts.test", "rollout server", "rollout.url"),
        limits=Limits(attempts=2, wait_initial=0.0),
        transport=server,
    )


def sampler_of(server, lm, folder) -> VllmSampler:
    sampling = SglangServer(http_of(server), "base", concurrency=3)
    weights = WeightSync(sampling, lm, tiny_tokenizer(), Destination(folder / "sync"))
    return VllmSampler(sampling, Decoding(6), stop=STOP, logp=True, weights=weights)


def server_for(lm, **options) -> FakeSglangServer:
    return FakeSglangServer(model_logp(lm), "base", load=load_weights_for(lm), **options)


def change(lm, part: str) -> None:
    for name, p in lm.parameters().items():
        if part in name:
            p.data.add_(0.05)


def test_a_server_is_known_by_its_answers():
    assert kind_of_server(http_of(FakeSglangServer(letter_model()))) is SglangServer
    assert kind_of_server(http_of(FakeVllmServer(letter_model()))) is SamplingServer


@pytest.mark.parametrize("lora", [False, True])
def test_rollouts_are_of_the_weights_that_were_sent(make_lm, make_prompts, tmp_path, lora):
    lm = make_lm()
    if lora:
        lm = add_lora(lm, rank=2, alpha=4, target_modules="all-linear", seed=0)
    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path)
    for version in (1, 2):
        change(lm, "lora_B" if lora else "proj")
        sampler.sync(version)
        rollouts = sampler.sample(make_prompts(3, 5), n=2, key=(0, 1, version))
        assert [(r.prompt.index, r.sample) for r in rollouts] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert {r.version for r in rollouts} == {version}
        for r in rollouts:
            logp = completion_logp(model_logp(lm), r)
            np.testing.assert_allclose(r.logp, logp[np.arange(len(r)), r.ids], atol=1e-5)
            assert (r.finish == "stop") == (r.ids[-1] in STOP)
    assert list(server.adapters) == (["opd-student-2"] if lora else [])
    sent = [b for path, b in server.calls if isinstance(b.get("sampling_params"), list)]
    assert len(sent) == 4
    assert all(params["no_stop_trim"] for b in sent for params in b["sampling_params"])
    assert all(b.get("lora_path") in ("opd-student-1", "opd-student-2") for b in sent) == lora


@pytest.mark.parametrize("n", [1, 6])
def test_completions_of_a_prompt_differ_where_the_server_takes_seeds(
    make_lm, make_prompts, tmp_path, n
):
    """SGLang gives the n completions of a request one seed: with deterministic inference the same
    completion n times."""
    lm = make_lm()
    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path)
    sampler.sync(0)
    rollouts = sampler.sample(make_prompts(3), n=n, key=(0, 1, 0))
    assert len({tuple(r.ids) for r in rollouts}) > n // 2
    again = sampler.sample(make_prompts(3), n=n, key=(0, 1, 0))
    assert [tuple(r.ids) for r in again] == [tuple(r.ids) for r in rollouts]


def test_weights_that_did_not_arrive_are_found(make_lm, tmp_path):
    lm = make_lm()
    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path)
    sampler.sync(0)
    server.load = None  # it says that it has loaded them, and has not
    change(lm, "proj")
    with pytest.raises(UserError, match="version 1 2 times"):
        sampler.sync(1)


def test_completions_of_other_weights_are_not_taken(make_lm, make_prompts, tmp_path):
    """Somebody sends weights while a request is under way: its answer says so."""
    lm = make_lm()
    server = server_for(lm)
    sampler = sampler_of(server, lm, tmp_path)
    sampler.sync(3)
    server.edit = lambda info: info.__setitem__("weight_version", "4")
    with pytest.raises(UserError, match="weights of version 4 sampled it, and 3 was sent"):
        sampler.sample(make_prompts(3), n=1, key=(0, 1, 3))


def test_a_refusal_with_status_200_is_one(make_lm, tmp_path):
    lm = make_lm()
    server = server_for(lm)
    real = server.answer

    def refuse(path, body):
        if path != "/update_weights_from_disk":
            return real(path, body)
        from opd.testing.clients import json_response

        return json_response({"success": False, "message": "out of memory"})

    server.answer = refuse
    with pytest.raises(UserError, match=r"out of memory(.|\n)*start SGLang on the student"):
        sampler_of(server, lm, tmp_path).sync(0)
