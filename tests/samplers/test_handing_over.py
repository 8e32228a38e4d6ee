"""Full weights without files: every fault ends in right weights, by files if need be."""

from __future__ import annotations

import copy
import time

import httpx2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from opd.samplers.sampling_server import RPC
from opd.samplers.weight_transfer import FINISH, UPDATE
from opd.testing import load_weights_for, model_logp
from opd.testing.weight_receiver import WeightReceiver
from support.everyday import everyday
from support.synced import WAYS, paths, sampler_of, sync_to, taking_server, train


@pytest.fixture
def full(make_lm):
    return make_lm()


@pytest.mark.parametrize("backend", WAYS)
def test_full_weights_go_from_memory_to_memory_and_no_file_is_written(backend, full, tmp_path):
    server = taking_server(full, backend)
    weights = sync_to(server, full, tmp_path, transfer=backend)
    for version in (0, 1, 2):
        train(full, seed=version)
        weights.send(version)
        assert server.weight_version == str(version)
        assert paths(server)[-2:] == ["/update_weight_version", "/v1/completions"]
        assert paths(server)[-3] == "/reset_prefix_cache"
    assert RPC not in paths(server)
    assert not list(tmp_path.rglob("*.safetensors"))


class HandedOver:
    """Faults of a server that takes weights without files; `state` has its weights before."""

    @staticmethod
    def an_error_in_the_middle(server, route, state):
        if route == UPDATE:
            raise RuntimeError("out of memory")

    @staticmethod
    def a_handle_that_cannot_be_opened(server, route, state):
        if route == UPDATE:
            raise ValueError("IPC handle not found for GPU UUID GPU-1")

    @staticmethod
    def an_error_at_the_end(server, route, state):
        if route == FINISH:
            raise RuntimeError("shapes differ")

    @staticmethod
    def half_of_it_arrives(server, route, state):
        if route == FINISH:
            arriving = server.receiver.arriving
            for name in list(arriving)[::2]:
                arriving[name] = state[name]
            return True
        return False

    @staticmethod
    def nothing_of_it_arrives(server, route, state):
        if route == FINISH:
            server.receiver.arriving = dict(state)
            return True
        return False

    @staticmethod
    def it_dies_in_the_middle(server, route, state):
        if route == UPDATE:
            raise httpx2.ReadError("connection reset")


HANDED_OVER = [name for name in vars(HandedOver) if not name.startswith("_")]


@pytest.mark.parametrize("backend", everyday(WAYS, 0))
@pytest.mark.parametrize("stays", everyday([False, True], 1))
@pytest.mark.parametrize("name", everyday(HANDED_OVER, 1, 3))
def test_a_fault_of_a_push_without_files_ends_in_right_weights(
    name, stays, backend, full, make_prompts, tmp_path, caplog
):
    server = taking_server(full, backend)
    weights = sync_to(server, full, tmp_path, transfer=backend, patience=60.0)
    weights.send(0)
    state = {key: tensor.clone() for key, tensor in full.model.state_dict().items()}
    acts = [-1 if stays else 1]

    def fault(route, body):
        if acts[0] != 0:
            try:
                acted = getattr(HandedOver, name)(server, route, state)
            except BaseException:
                acts[0] -= 1
                raise
            acts[0] -= bool(acted)

    server.receiver.fault = fault
    train(full)
    weights.send(1)
    assert acts[0] < (0 if stays else 1)  # it did act
    (rollout,) = sampler_of(weights).sample(make_prompts(4), n=1, key=(0,))
    logp = model_logp(full)([*rollout.prompt.ids, *rollout.ids.tolist()])
    rows = logp[len(rollout.prompt.ids) - 1 : -1]
    own = np.take_along_axis(rows, rollout.ids[:, None].astype(int), 1)[:, 0]
    np.testing.assert_allclose(rollout.logp, own, rtol=1e-5)
    if stays:  # by files from now on, which is said once
        assert caplog.text.count("files are sent instead") == 1
        assert RPC in paths(server)
        weights.send(2)
        assert caplog.text.count("files are sent instead") == 1
        assert len(list((tmp_path / "sync").glob("step-2"))) == 1


@pytest.mark.slow  # it waits for the server, as long as it may
def test_a_server_that_hangs_in_a_broadcast_is_started_again(full, tmp_path, caplog):
    server = taking_server(full, "nccl")

    def restart(folder):
        server.receiver.fault = lambda route, body: None
        server.logp = load_weights_for(full)(folder)

    weights = sync_to(server, full, tmp_path, transfer="nccl", restart=restart)
    weights.send(0)
    server.receiver.fault = lambda route, body: time.sleep(6.0) if route == UPDATE else None
    train(full)
    weights.send(1)
    assert RPC not in paths(server)
    assert "files are sent instead" in caplog.text
    np.testing.assert_allclose(server.logp([4, 5]), model_logp(full)([4, 5]), rtol=1e-6)


def test_a_server_that_was_started_again_gets_its_weights_without_files(
    full, make_prompts, tmp_path, caplog
):
    server = taking_server(full, "nccl")
    as_started = model_logp(copy.deepcopy(full))
    weights = sync_to(server, full, tmp_path, transfer="nccl", patience=60.0)
    sampler = sampler_of(weights)

    def start_again():
        server.logp, server.weight_version = as_started, "default"
        server.receiver = WeightReceiver("nccl", torch.device("cpu"), server.receiver.load)

    train(full)
    weights.send(3)
    expected = sampler.sample(make_prompts(4, 5), n=2, key=(0,))
    start_again()
    again = sampler.sample(make_prompts(4, 5), n=2, key=(0,))
    assert [r.ids.tolist() for r in again] == [r.ids.tolist() for r in expected]
    start_again()
    weights.send(4)
    assert "files are sent" not in caplog.text
    assert RPC not in paths(server)


def test_a_head_that_transfers_miss_is_sent_as_its_own_after_a_restart(full, tmp_path, caplog):
    server = taking_server(full, "ipc")
    started_with = []
    old = full.model.state_dict()["lm_head.weight"].clone()

    def restart(folder):
        started_with.append(load_file(folder / "model.safetensors"))
        server.fault = server.receiver.load = None
        server.logp = load_weights_for(full)(folder)
        server.receiver.load = lambda arrived: setattr(server, "logp", as_own(arrived))

    def as_own(arrived):
        new = copy.deepcopy(full)
        new.model.lm_head.weight = torch.nn.Parameter(arrived["lm_head.weight"])
        new.model.load_state_dict(arrived)
        return model_logp(new)

    def stale(arrived):
        new = copy.deepcopy(full)
        new.model.load_state_dict(arrived, strict=False)
        new.model.lm_head.weight = torch.nn.Parameter(old)
        server.logp = model_logp(new)

    weights = sync_to(server, full, tmp_path, transfer="ipc", restart=restart)
    weights.send(0)
    server.receiver.load = stale
    right = server.answer

    def reload_is_stale_too(fake, request):
        if request.url.path != RPC:
            return None
        answer = right(request)
        stale(full.model.state_dict())
        return answer

    server.fault = reload_is_stale_too
    train(full)
    weights.send(1)
    assert len(started_with) == 1
    sent = paths(server).count(UPDATE)
    train(full, seed=1)
    weights.send(2)
    assert paths(server).count(UPDATE) > sent
    assert caplog.text.count("files are sent instead") == 1
