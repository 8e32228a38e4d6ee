"""A server that keeps its old head when it is sent a new one: found, however little that is."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from opd.samplers.sampling_server import RPC
from opd.testing import load_weights_for, model_logp
from support.everyday import everyday
from support.synced import paths, server_for, sync_to, train


@pytest.fixture
def full(make_lm):
    return make_lm()


@pytest.mark.parametrize(("launched", "resumed"), [(True, False), (False, False), (True, True)])
def test_a_head_that_is_a_little_old_is_found(launched, resumed, full, tmp_path, caplog):
    """As vLLM's CPU build has it of a tied head: far below the gap that is refused.

    A resumed run has its first push on a server that was started on the student of the beginning.
    """
    server = server_for(full)
    server.dtype = "float32" if resumed else None
    before = model_logp(copy.deepcopy(full))
    restarted: list[Path] = []

    def restart(folder):
        restarted.append(folder)
        server.fault = None
        server.logp = load_weights_for(full)(folder)

    weights = sync_to(server, full, tmp_path, **({"restart": restart} if launched else {}))
    if not resumed:
        weights.send(0)
    train(full)

    def keeps_a_part(server, request):
        if request.url.path != RPC:
            return None
        answer = server.answer(request)
        new = server.logp
        server.logp = lambda ids: np.logaddexp(new(ids) + np.log(0.99), before(ids) + np.log(0.01))
        return answer

    server.fault = keeps_a_part
    weights.send(1)
    assert len(restarted) == launched
    assert "a part of them did not arrive" in caplog.text
    assert ("is sampled from as it is" in caplog.text) != launched


@pytest.mark.parametrize("launched", everyday([True, False], 0))
def test_a_head_that_noise_hides_is_found_by_a_much_smaller_one(launched, full, tmp_path, caplog):
    """In bfloat16, also in the first push of a resumed run, whose server has the first head."""
    server = server_for(full)
    server.dtype = "bfloat16"
    first_head = full.causal.get_input_embeddings().weight.detach().clone()
    restarted: list[Path] = []

    def restart(folder):
        restarted.append(folder)
        server.fault = None
        server.logp = load_weights_for(full)(folder)

    def keeps_its_head(server, request):
        if request.url.path != RPC:
            return None
        answer = server.answer(request)
        folder = Path(json.loads(request.content)["kwargs"]["weights_path"])
        new = copy.deepcopy(full)
        new.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        new.model.lm_head.weight = torch.nn.Parameter(first_head.clone())
        server.logp = model_logp(new)
        return answer

    server.fault = keeps_its_head
    train(full, 1e-4)
    trained = {key: tensor.clone() for key, tensor in full.model.state_dict().items()}
    weights = sync_to(server, full, tmp_path, **({"restart": restart} if launched else {}))
    weights.send(7)
    assert len(restarted) == launched
    assert ("does not take a new tied head" in caplog.text) != launched
    for name, tensor in full.model.state_dict().items():
        assert torch.equal(tensor, trained[name])
    if launched:
        np.testing.assert_allclose(server.logp([4, 5]), model_logp(full)([4, 5]), atol=0.1)
    pushes = paths(server).count(RPC)
    train(full, 1e-4, seed=1)
    weights.send(8)
    assert paths(server).count(RPC) == pushes + 1  # it is asked once


@pytest.mark.parametrize("tied", everyday([True, False], 0))
def test_a_server_that_takes_a_new_head_is_asked_once(tied, make_lm, tmp_path):
    lm = make_lm()
    lm.model.config.tie_word_embeddings = tied
    server = server_for(lm)
    server.dtype = "bfloat16"
    weights = sync_to(server, lm, tmp_path)
    for version in range(3):
        train(lm, seed=version)
        weights.send(version)
    assert paths(server).count(RPC) == 3 + tied
