"""The student's weights on their way to a server: every fault is found, and nothing hangs."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from opd.errors import UserError
from opd.models.lm import add_lora
from opd.samplers.sampling_server import LOAD_ADAPTER, RPC
from opd.testing import load_weights_for, model_logp
from opd.testing.clients import raw_response
from support.everyday import everyday
from support.synced import paths, sampler_of, server_for, sync_to, train


@pytest.fixture
def full(make_lm):
    return make_lm()


@pytest.fixture
def lora(make_lm):
    return add_lora(make_lm(), rank=2, alpha=4, target_modules="all-linear", seed=0)


def test_adapters_get_a_new_name_a_version_and_old_ones_go(lora, make_prompts, tmp_path):
    server = server_for(lora)
    weights = sync_to(server, lora, tmp_path)
    sampler = sampler_of(weights)
    for version in (0, 1, 2):
        train(lora, seed=version)
        sampler.sync(version)
        assert list(server.adapters) == [f"opd-student-{version}"]
        (rollout,) = sampler.sample(make_prompts(4), n=1, key=(0, 1, version))
        assert rollout.version == version
    assert [p.name for p in (tmp_path / "sync").iterdir()] == ["step-2"]
    sampler.sync(2)  # a resumed run gives the same version again
    assert list(server.adapters) == ["opd-student-2"]


def test_full_weights_are_reloaded_labelled_and_the_prefix_cache_forgotten(full, tmp_path):
    server = server_for(full, dtype="float32")
    sync_to(server, full, tmp_path).send(1)
    assert paths(server) == [
        "/server_info",
        "/v1/models",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/update_weight_version",
        "/v1/completions",  # the check
    ]
    assert server.weight_version == "1"


def test_folders_that_no_run_wrote_for_a_server_stay(lora, tmp_path):
    """rollout.sync_dir set to the checkpoints of another run would have deleted them."""
    theirs = tmp_path / "sync" / "step-7" / "state.json"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    weights = sync_to(server_for(lora), lora, tmp_path)
    weights.send(1)
    weights.send(2)
    assert sorted(p.name for p in (tmp_path / "sync").iterdir()) == ["step-2", "step-7"]
    with pytest.raises(UserError, match=r"step-7 is there already.*rollout\.sync_dir"):
        weights.send(7)
    assert theirs.read_text() == "{}"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_server_that_takes_no_weights_is_named_with_how_to_start_it(kind, lora, full, tmp_path):
    lm = lora if kind == "lora" else full
    word = "VLLM_ALLOW_RUNTIME_LORA_UPDATING" if kind == "lora" else "VLLM_SERVER_DEV_MODE"
    with pytest.raises(UserError, match=word):
        sync_to(server_for(lm, accepts_weights=False), lm, tmp_path).send(0)


@pytest.mark.parametrize("says", [True, False])
def test_files_have_the_precision_of_the_server(says, full, tmp_path):
    full.model.float()
    server = server_for(full, dtype="bfloat16" if says else None)
    sync_to(server, full, tmp_path, dtype=None if says else torch.bfloat16).send(0)
    files = load_file(tmp_path / "sync" / "step-0" / "model.safetensors")
    assert {t.dtype for t in files.values()} == {torch.bfloat16}


class Faults:
    """Each makes a fault of a server from its second weights on; `undo` says how often it acts."""

    @staticmethod
    def dies_in_the_middle_of_a_push(server, request, state):
        if request.url.path in (RPC, LOAD_ADAPTER):
            raise httpx2.ReadError("connection reset")

    @staticmethod
    def push_half_applied(server, request, state):
        """The head is the new one, the layers are those before."""
        if request.url.path in (RPC, LOAD_ADAPTER):
            answer = server.answer(request)
            new, old = server.logp, state["logp"]
            server.logp = lambda ids: np.logaddexp(new(ids), old(ids) + 1.0) - np.log(1 + np.e)
            server._adapted = dict.fromkeys(server._adapted, server.logp)
            return answer
        return None

    @staticmethod
    def old_weights_under_the_new_version(server, request, state):
        if request.url.path in (RPC, LOAD_ADAPTER):
            answer = server.answer(request)
            server.logp = state["logp"]
            server._adapted = dict.fromkeys(server._adapted, state["logp"])
            return answer
        return None

    @staticmethod
    def wrong_head_after_reload(server, request, state):
        if request.url.path in (RPC, LOAD_ADAPTER):
            answer = server.answer(request)
            right = server._adapted.get("opd-student-1", server.logp)
            server.logp = lambda ids: np.roll(right(ids), 1, axis=-1)
            server._adapted = dict.fromkeys(server._adapted, server.logp)
            return answer
        return None

    @staticmethod
    def paused(server, request, state):
        return raw_response(b"paused", 503)

    @staticmethod
    def refuses_to_say_tokens(server, request, state):
        if request.url.path == "/v1/completions":
            return raw_response(b'{"model": "base", "choices": [{}]}')
        return None


FAULTS = [name for name in vars(Faults) if not name.startswith("_")]


def faulty(server, name, times):
    """Let a fault happen `times` times from now on."""
    left = [times]
    model = server._adapted.get("opd-student-0", server.logp)
    state = {"logp": model}

    def fault(server, request):
        if left[0] == 0:
            return None
        answer = getattr(Faults, name)(server, request, state)
        left[0] -= answer is not None
        return answer

    def fault_that_raises(server, request):
        if left[0] and request.url.path in (RPC, LOAD_ADAPTER):
            left[0] -= 1
            return getattr(Faults, name)(server, request, state)
        return None

    server.fault = fault_that_raises if name.startswith("dies") else fault


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", everyday(FAULTS, *range(0, 100, 2)))
def test_a_fault_that_passes_is_overcome(name, kind, lora, full, make_prompts, tmp_path):
    lm = lora if kind == "lora" else full
    server = server_for(lm)
    weights = sync_to(server, lm, tmp_path, patience=60.0)
    weights.send(0)
    train(lm)
    faulty(server, name, 1)
    weights.send(1)
    server.fault = None
    (rollout,) = sampler_of(weights).sample(make_prompts(4), n=1, key=(0,))
    logp = model_logp(lm)([*rollout.prompt.ids, *rollout.ids.tolist()])
    rows = logp[len(rollout.prompt.ids) - 1 : -1]
    own = np.take_along_axis(rows, rollout.ids[:, None].astype(int), 1)[:, 0]
    np.testing.assert_allclose(rollout.logp, own, rtol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", everyday(FAULTS, *range(1, 100, 2)))
def test_a_fault_that_stays_ends_with_its_name_and_in_time(name, kind, lora, full, tmp_path):
    lm = lora if kind == "lora" else full
    server = server_for(lm)
    weights = sync_to(server, lm, tmp_path, patience=60.0)
    weights.send(0)
    train(lm)
    faulty(server, name, -1)
    with pytest.raises(UserError, match="rollout server"):
        weights.send(1)
    assert server.clock.now() < 600


@pytest.mark.parametrize("size", [3e-3, 0.05])
def test_weights_of_a_small_step_that_did_not_arrive_are_found(size, full, tmp_path):
    """The gap of such a step is far below what other weights are refused for."""
    server = server_for(full)
    weights = sync_to(server, full, tmp_path)
    weights.send(0)
    train(full, size)
    faulty(server, "old_weights_under_the_new_version", -1)
    with pytest.raises(UserError, match=r"weights before|differ from the student"):
        weights.send(1)


def test_a_reload_that_is_never_right_falls_to_a_restart(full, tmp_path, caplog):
    server = server_for(full)
    restarted: list[Path] = []

    def restart(folder):
        restarted.append(folder)
        server.fault = None
        server.logp = load_weights_for(full)(folder)

    weights = sync_to(server, full, tmp_path, restart=restart)
    weights.send(0)
    train(full)
    faulty(server, "wrong_head_after_reload", -1)
    weights.send(1)
    assert [folder.name for folder in restarted] == ["step-1"]
    assert "started again" in caplog.text
    weights.send(2)
    folders = {p.name: load_file(p / "model.safetensors") for p in restarted[0].parent.iterdir()}
    assert set(folders) == {"step-1", "step-2"}  # the one it would be started on again stays
    for files in folders.values():  # a tied head is weights of its own from the restart on
        assert torch.equal(files["lm_head.weight"], files["model.embed_tokens.weight"])
    config = json.loads((restarted[0] / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_server_that_was_started_again_gets_the_weights_of_the_run(
    kind, lora, full, make_prompts, tmp_path
):
    lm = lora if kind == "lora" else full
    server = server_for(lm)
    server.logp = model_logp(copy.deepcopy(lm))
    as_started = server.logp
    weights = sync_to(server, lm, tmp_path, patience=60.0)
    sampler = sampler_of(weights)
    train(lm)
    weights.send(3)
    expected = sampler.sample(make_prompts(4, 5), n=2, key=(0,))
    server.adapters.clear()
    server._adapted.clear()
    server.logp, server.weight_version = as_started, "default"
    again = sampler.sample(make_prompts(4, 5), n=2, key=(0,))
    assert [r.ids.tolist() for r in again] == [r.ids.tolist() for r in expected]
    assert {r.version for r in again} == {3}


def test_weights_that_somebody_else_sends_in_between_are_not_sampled(full, make_prompts, tmp_path):
    """Completions of two versions: those of the call go, and the weights are sent again."""
    server = server_for(full)
    weights = sync_to(server, full, tmp_path)
    sampler = sampler_of(weights)
    weights.send(1)
    expected = sampler.sample(make_prompts(4, 5), n=2, key=(0,))
    right, others = server.logp, [1]

    def push(answer, choice):
        if others:
            others.pop()
            server.logp = lambda ids: np.roll(right(ids), 1, axis=-1)
            server.weight_version = "7"

    server.edit_completion = push
    again = sampler.sample(make_prompts(4, 5), n=2, key=(0,))
    assert [r.ids.tolist() for r in again] == [r.ids.tolist() for r in expected]
    assert not others


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_server_on_the_trainers_gpu_sleeps_whenever_it_is_not_asked(
    kind, lora, full, make_prompts, tmp_path
):
    lm = lora if kind == "lora" else full
    server = server_for(lm)
    weights = sync_to(server, lm, tmp_path)
    weights.server.sleeps = True
    sampler = sampler_of(weights)
    for version in (0, 1):
        train(lm, seed=version)
        sampler.sync(version)  # the weights arrive although it slept
        assert not server.asleep
        rollouts = sampler.sample(make_prompts(4, 5), n=2, key=(0,))
        assert server.asleep
        assert len(rollouts) == 4
    again = sampler.sample(make_prompts(4, 5), n=2, key=(0,))  # a held-out set, without a sync
    assert [r.ids.tolist() for r in again] == [r.ids.tolist() for r in rollouts]
    assert [p for p in paths(server) if p in ("/sleep", "/wake_up")] == (
        ["/sleep", "/wake_up"] * 2 + ["/sleep"]
    )


def test_a_server_that_is_started_again_while_it_sleeps_is_awake(full, make_prompts, tmp_path):
    server = server_for(full)
    weights = sync_to(server, full, tmp_path, patience=60.0)
    weights.server.sleeps = True
    sampler = sampler_of(weights)
    weights.send(0)
    expected = sampler.sample(make_prompts(4), n=2, key=(0,))
    gone = [3]

    def dies(server, request):
        if gone[0]:
            gone[0] -= 1
            server.asleep, server.weight_version = False, "default"
            raise httpx2.ConnectError("refused")

    server.fault = dies
    again = sampler.sample(make_prompts(4), n=2, key=(0,))
    assert [r.ids.tolist() for r in again] == [r.ids.tolist() for r in expected]
