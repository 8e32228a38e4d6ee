"""Rollouts from a vLLM server: what is taken, what is refused, how weights get there."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from conftest import tiny_tokenizer
from opd.errors import UserError
from opd.http import Endpoint, Http, Limits, Timer
from opd.models.lm import add_lora
from opd.run.bad_answers import Quarantine
from opd.samplers.hf import Decoding
from opd.samplers.replay import ReplaySampler
from opd.samplers.vllm import RolloutServer, VllmSampler, request_seed
from opd.testing import FakeVllmServer
from opd.testing.language import completion_logp
from opd.training.distributed import RankZeroSampler
from support.ranks import run_as_rank_zero
from support.servers import STOP, stopping_model

K, LENGTH = 3, 6


def base_server(**options) -> FakeVllmServer:
    """A rollout server of the model "base"."""
    return FakeVllmServer(stopping_model(), "base", **options)


def sampler_of(server, lm, tmp_path, **changes) -> VllmSampler:
    http = Http(
        Endpoint("http://rollouts.test", "rollout server", "rollout.url"),
        limits=Limits(attempts=2, wait_initial=0.0),
        timer=Timer(),
        transport=server,
    )
    rollout_server = RolloutServer(
        http, "base", **({"sync_dir": tmp_path / "sync", "concurrency": 3} | changes)
    )
    stop = frozenset({STOP})
    return VllmSampler(rollout_server, lm, tiny_tokenizer(), Decoding(LENGTH), stop=stop, capture=K)


@pytest.fixture
def lora(make_lm):
    lm = make_lm()
    return add_lora(lm, rank=2, alpha=4, target_modules="all-linear", seed=0)


def test_rollouts_carry_ids_logprobs_and_the_top_k_best_first(make_lm, make_prompts, tmp_path):
    sampler = sampler_of(base_server(), make_lm(), tmp_path)
    sampler.sync(4)
    prompts = make_prompts(3, 5)
    rollouts = sampler.sample(prompts, n=3, key=(0, 1, 4))
    expected = [(p, s) for p in (0, 1) for s in range(3)]
    assert [(r.prompt.index, r.sample) for r in rollouts] == expected
    assert {r.finish for r in rollouts} == {"stop", "length"}
    for r in rollouts:
        logp = completion_logp(stopping_model(), r)
        assert r.version == 4
        assert r.finish == ("stop" if r.ids[-1] == STOP else "length")
        assert r.topk_ids.shape == r.topk_logp.shape == (len(r), K)
        sampled = np.take_along_axis(logp, r.ids[:, None].astype(int), 1)[:, 0]
        np.testing.assert_allclose(r.logp, sampled, rtol=1e-6)
        np.testing.assert_array_equal(r.topk_ids, np.argsort(-logp, 1)[:, :K])
        np.testing.assert_allclose(r.topk_logp, -np.sort(-logp, 1)[:, :K], rtol=1e-6)
        assert all(math.isnan(x) for x in r.entropy)


def test_a_rollout_depends_on_its_key_alone(make_lm, make_prompts, tmp_path):
    sampler = sampler_of(base_server(), make_lm(), tmp_path)
    sampler.sync(0)
    prompts = make_prompts(3, 5, 4)
    together = sampler.sample(prompts, n=2, key=(0, 1, 2))
    alone = sampler.sample(prompts[1:2], n=2, key=(0, 1, 2))
    for a, b in zip(together[2:4], alone, strict=True):
        np.testing.assert_array_equal(a.ids, b.ids)
    keys = [(0, 1, 2), (0, 1, 3), (1, 1, 2)]
    assert len({request_seed(k, p, s) for k in keys for p in range(3) for s in range(4)}) == 36


def test_adapters_get_a_new_name_a_version_and_old_ones_go(lora, make_prompts, tmp_path):
    server = base_server()
    sampler = sampler_of(server, lora, tmp_path)
    for version in (0, 1, 2):
        sampler.sync(version)
        assert list(server.adapters) == [f"opd-student-{version}"]
        (rollout,) = sampler.sample(make_prompts(4), n=1, key=(0, 1, version))
        assert rollout.version == version
    assert [p.name for p in (tmp_path / "sync").iterdir()] == ["step-2"]
    sampler.sync(2)  # a resumed run gives the same version again
    assert list(server.adapters) == ["opd-student-2"]


def test_folders_that_no_run_wrote_for_a_server_stay(lora, tmp_path):
    """rollout.sync_dir set to the checkpoints of another run would have deleted them."""
    theirs = tmp_path / "sync" / "step-7" / "state.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    sampler = sampler_of(base_server(), lora, tmp_path)
    sampler.sync(1)
    sampler.sync(2)
    assert sorted(p.name for p in (tmp_path / "sync").iterdir()) == ["step-2", "step-7"]
    with pytest.raises(UserError, match=r"step-7 is there already.*rollout\.sync_dir"):
        sampler.sync(7)
    assert theirs.read_text() == "{}"


def test_full_weights_are_reloaded_and_the_prefix_cache_forgotten(make_lm, tmp_path):
    server = base_server()
    sampler_of(server, make_lm(), tmp_path).sync(1)
    assert [path for path, _ in server.calls] == ["/collective_rpc", "/reset_prefix_cache"]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_server_that_takes_no_weights_is_named_with_how_to_start_it(
    kind, lora, make_lm, tmp_path
):
    lm = lora if kind == "lora" else make_lm()
    word = "VLLM_ALLOW_RUNTIME_LORA_UPDATING" if kind == "lora" else "VLLM_SERVER_DEV_MODE"
    with pytest.raises(UserError, match=word):
        sampler_of(base_server(accepts_weights=False), lm, tmp_path).sync(0)


def _stale(answer, choice):
    answer["model"] = "opd-student-0"


def _cut(answer, choice):
    choice["token_ids"] = choice["token_ids"][:1]
    choice["logprobs"]["token_logprobs"] = [-1.0]
    choice["logprobs"]["top_logprobs"] = choice["logprobs"]["top_logprobs"][:1]


SPOILS = {
    "stale weights": _stale,
    "exactly one completion": lambda a, c: a.update(choices=[c, c]),
    "another prompt": lambda a, c: c.update(prompt_token_ids=[1, 2]),
    "no token_ids": lambda a, c: c.pop("token_ids"),
    "no log-probs": lambda a, c: c.update(logprobs=None),
    "0 tokens": lambda a, c: c.update(token_ids=[]),
    "does not end where": _cut,
    "above 0": lambda a, c: c["logprobs"].update(token_logprobs=[0.5] * len(c["token_ids"])),
    "not a number": lambda a, c: c["logprobs"].update(token_logprobs=[None] * len(c["token_ids"])),
    "of the tokens are missing": lambda a, c: c["logprobs"].update(token_logprobs=[-1.0]),
    "top log-probs are missing": lambda a, c: c["logprobs"].update(top_logprobs=None),
    "fewer than": lambda a, c: c["logprobs"]["top_logprobs"][0].popitem(),
    "not given as ids": lambda a, c: c["logprobs"]["top_logprobs"].__setitem__(
        0, {"a": -1.0, "b": -2.0, "c": -3.0}
    ),
}


@pytest.mark.parametrize("words", SPOILS)
def test_a_wrong_answer_is_refused_after_a_second_try(words, make_lm, make_prompts, tmp_path):
    def spoil(answer, choice):
        SPOILS[words](answer, choice)
        if words == "fewer than":
            choice["logprobs"]["top_logprobs"][0].popitem()

    server = base_server(edit_completion=spoil)
    sampler = sampler_of(server, make_lm(), tmp_path, concurrency=1)
    sampler.sync(0)
    with pytest.raises(UserError, match=words):
        sampler.sample(make_prompts(4), n=1, key=(0, 1, 0))
    assert sum(path == "/v1/completions" for path, _ in server.calls) == 2


def test_replay_hands_out_what_was_recorded(make_prompts, tmp_path, make_lm):
    sampler = sampler_of(base_server(), make_lm(), tmp_path)
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
    with pytest.raises(UserError, match="no rollout of prompt"):
        replay.sample(make_prompts(7, seed=5), n=1, key=(0, 1, 0))
    with pytest.raises(UserError, match=r"loss\.k"):
        ReplaySampler(given, Path("file"), capture=K + 1, max_length=LENGTH)


def test_a_wrong_completion_is_kept_as_it_came(make_lm, make_prompts, tmp_path):
    server = base_server()
    server.edit_completion = lambda answer, choice: choice.update(token_ids=[])
    quarantine = Quarantine(tmp_path / "wrong")
    sampler = sampler_of(server, make_lm(), tmp_path, quarantine=quarantine)
    sampler.sync(0)
    with pytest.raises(UserError, match="kept in"):
        sampler.sample(make_prompts(3), n=1, key=(0,))
    (answered,) = (tmp_path / "wrong").glob("*/answered-0")
    assert json.loads(answered.read_bytes())["choices"][0]["token_ids"] == []


def test_one_process_speaks_with_a_rollout_server(make_lm, make_prompts, tmp_path):
    lm, prompts = make_lm(), make_prompts(3, 5)
    servers = [base_server() for _ in range(3)]
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
        np.testing.assert_array_equal(a.topk_logp, b.topk_logp)
