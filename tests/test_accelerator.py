"""Sampling, scoring, the update and the diagnostics on a simulated accelerator.

No tensor of the host may meet one of the device, and the host may wait only where it must: what
waits in a decoding step cannot be captured as a CUDA graph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opd.gpu_check.harness import Device
from opd.gpu_check.workload import make_model
from opd.models.lm import add_lora
from opd.models.master_weights import add_master_weights
from opd.models.quantised import quantise
from opd.recipes.check.diagnose import diagnose
from opd.samplers import hf
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.samplers.pace import CUDA
from opd.training.gradient import accumulate
from opd.training.step import update
from opd.training.throwaway import throwaway
from support.accelerator import DEVICE, Accelerator, OnDevice, on_accelerator
from support.architectures import build
from support.everyday import everyday
from support.updates import OBJECTIVES, experience, gradients, learner_of

# Qwen3's norms are in float32, and the device shares prompts where the CPU repeats them.
TOLERANCE = 1e-6


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(hf, "pace_of", lambda device: replace(CUDA, graphs=False, interval=4))
    with Accelerator() as active:
        yield active


def tiny(seed: int = 0, dtype=torch.float32):
    """Layers that are wide enough for quantised weights."""
    return make_model(Device(torch.device("cpu"), True, 0, Path()), "0.6B", dtype, seed=seed)


def quantised(scheme):
    lm = tiny()
    quantise(lm.model, scheme, None)
    return lm


MODELS = {
    "float32": tiny,
    "bfloat16": lambda: tiny(dtype=torch.bfloat16),
    "int8": lambda: quantised("int8"),
    "nf4": lambda: quantised("nf4"),
    "windows": lambda: build("Gemma 3"),
    "windows and experts": lambda: build("gpt-oss"),
    "LoRA": lambda: add_lora(tiny(), rank=4, alpha=8, target_modules="all-linear", seed=0),
}


def test_the_accelerator_finds_what_a_gpu_would_not_do(accelerator):
    there, here = torch.arange(4.0, device=DEVICE), torch.arange(4.0)
    with pytest.raises(AssertionError, match="on the device and"):
        there + here
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        there.numpy()
    assert isinstance(there + 1, OnDevice)
    assert accelerator.waits == accelerator.uploads == []
    assert there[there > 1].tolist() == [2.0, 3.0]
    assert float(there.sum()) == 6.0
    assert (there[[1, 2]] + here.to(DEVICE)[:2]).cpu().tolist() == [1.0, 3.0]
    assert [wait.split(" ")[0] for wait in accelerator.waits] == [
        "index.Tensor", "_to_copy", "_local_scalar_dense", "_to_copy",
    ]  # fmt: skip
    assert len(accelerator.uploads) == 2
    here.to(DEVICE, non_blocking=True).to("cpu", non_blocking=True)
    assert (len(accelerator.waits), len(accelerator.uploads)) == (4, 2)


@pytest.mark.parametrize("name", everyday(MODELS, 3))
def test_a_decoding_step_neither_waits_nor_copies(accelerator, make_prompts, name):
    lm, decoding = on_accelerator(MODELS[name]()), Decoding(10, top_p=0.9)
    sampler = HFSampler(lm, decoding, stop=frozenset({1}), capture=4)
    accelerator.waits.clear()
    accelerator.uploads.clear()
    rollouts = sampler.sample(make_prompts(3, 9), n=2, key=(0,))
    assert max(map(len, rollouts)) == 10
    assert len(accelerator.waits) == 3, accelerator.waits  # a look every 4 tokens
    assert len(accelerator.uploads) == 1, Counter(accelerator.uploads)  # stop tokens, once


@pytest.mark.parametrize("name", everyday(["Qwen3.5", "LFM2", "Falcon-H1"], 0))
def test_recurrent_models_wait_in_padded_prompts_alone(accelerator, make_prompts, name):
    lm = on_accelerator(build(name))
    waits = []
    for lengths, limit in (((9, 9), 5), ((9, 9), 21), ((3, 9), 5), ((3, 9), 21)):
        sampler = HFSampler(lm, Decoding(limit), stop=frozenset(), capture=4)
        accelerator.waits.clear()
        accelerator.uploads.clear()
        assert max(map(len, sampler.sample(make_prompts(*lengths), n=2, key=(0,)))) == limit
        waits.append(len(accelerator.waits))
        assert len(accelerator.uploads) == 1, Counter(accelerator.uploads)  # stop tokens, once
    assert waits[:2] == [1, 5], accelerator.waits  # a look every 4 tokens
    assert waits[3] - waits[2] == 4, accelerator.waits


@pytest.mark.parametrize("name", everyday(OBJECTIVES, 0))
def test_gradients_and_metrics_of_a_step_are_those_of_the_cpu(
    accelerator, make_lm, make_prompts, name
):
    objective, prompts = OBJECTIVES[name], make_prompts(3, 7)
    found = []
    for place in (lambda lm: lm, on_accelerator):
        student, teacher = place(make_lm(0)), place(make_lm(1))
        learner = learner_of(student, teacher, objective, moments="int8")
        batch = experience(student, teacher, objective, prompts)
        accelerator.waits.clear()
        metrics, loss = accumulate(learner, batch, 0)
        found.append((metrics, gradients(student), float(loss)))
    (expected, wanted, loss), (metrics, grads, same) = found
    assert same == pytest.approx(loss, rel=TOLERANCE)
    assert metrics.keys() == expected.keys()
    for key, mean in expected.items():
        assert metrics[key].value == pytest.approx(mean.value, rel=1e-5, abs=TOLERANCE), key
    for key, gradient in wanted.items():
        torch.testing.assert_close(grads[key].held, gradient, atol=TOLERANCE, rtol=TOLERANCE)
    of_diagnostics = [wait for wait in accelerator.waits if "core/diagnostics.py" in wait]
    assert len(of_diagnostics) <= 12, Counter(accelerator.waits)  # not two for each quantity


def test_whole_updates_leave_what_is_undone_and_keep_what_is_offloaded(accelerator, make_prompts):
    base, teacher, objective = tiny(), on_accelerator(tiny(1)), OBJECTIVES["paper"]
    student = on_accelerator(base)
    with throwaway(student):
        learner = learner_of(student, teacher, objective, moments="int8")
        update(learner, experience(student, teacher, objective, make_prompts(3, 7)), 0)
    for ours, theirs in zip(student.model.parameters(), base.model.parameters(), strict=True):
        assert torch.equal(ours.held, theirs)
    add_master_weights(student, on_cpu=True)
    learner = learner_of(student, teacher, objective)
    update(learner, experience(student, teacher, objective, make_prompts(3, 7)), 0)
    assert {master.device.type for master in student.masters.values()} == {"cpu"}
    for name, parameter in student.parameters().items():
        assert torch.equal(parameter.held, student.masters[name].bfloat16()), name


def test_the_diagnosis_of_a_check_is_that_of_the_cpu(accelerator, make_lm, make_prompts):
    student, teacher = make_lm(0), make_lm(1)
    rollouts = experience(student, teacher, OBJECTIVES["paper"], make_prompts(3, 7)).rollouts
    expected, found = (
        diagnose(place(student), place(teacher), rollouts, k=4, tokens_per_batch=64)
        for place in (lambda lm: lm, on_accelerator)
    )
    assert found.mean.keys() == expected.mean.keys()
    for name, value in expected.mean.items():
        np.testing.assert_allclose(found.mean[name], value, atol=TOLERANCE, err_msg=name)
