"""Weights in 8 and 4 bits, moments in 8 bits, adapters beside a teacher of four times the size."""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch

from opd.core.objective import Objective
from opd.gpu_check.correctness import UPDATES, change_of, cosine_of
from opd.gpu_check.harness import GIB, Device
from opd.gpu_check.memory import measure_step
from opd.gpu_check.workload import (
    SHAPES,
    TINY,
    make_batch,
    make_learner,
    make_model,
    make_rollouts,
)
from opd.models.lm import LM, add_lora, enable_checkpointing
from opd.models.model_size import model_size
from opd.models.quantised import dequantise, quantise
from opd.teachers.local import LocalTeacher
from opd.types import Scheme

PLANNED_WITHIN = 0.15  # of what is held


def quantised_teacher(device: Device) -> None:
    """A 4B teacher in int8 and nf4: memory against plan, scores against its own full weights."""
    rows, length = (4, 8) if device.tiny else (16, 1024)
    objective = Objective()
    for scheme in get_args(Scheme):
        teacher = make_model(device, "4B", seed=1)
        teacher.model.requires_grad_(False)
        config, probe = teacher.model.config, torch.randint(3, 1000, (1, 256))
        rollouts = make_rollouts(teacher, rows, length)
        plain = device.time(lambda: make_batch(teacher, rollouts, objective))  # noqa: B023
        device.reset_memory()
        beside = device.allocated()
        noise = quantise(teacher.model, scheme, probe)
        device.reset_memory()
        sizes = model_size(config, torch.bfloat16, on_gpu=device.is_cuda, scheme=scheme)
        full = model_size(config, torch.bfloat16, on_gpu=device.is_cuda)
        held = device.allocated() - (beside - full.weights / GIB)
        planned = sizes.weights / GIB
        text = f"a 4B teacher in {scheme} holds what is planned"
        if device.is_cuda:
            close = abs(planned - held) <= PLANNED_WITHIN * held
            device.require(close, text, held_gib=held, planned_gib=planned)
        make_batch(teacher, rollouts, objective)
        seconds = device.time(lambda: make_batch(teacher, rollouts, objective))  # noqa: B023
        speeds = {"tokens_per_s": rows * length / seconds, "bf16": rows * length / plain}
        want = objective.want._replace(sampled=True)
        scores = LocalTeacher(teacher).score(rollouts[:2], want)
        dequantise(teacher.model)
        pairs = zip(scores, LocalTeacher(teacher).score(rollouts[:2], want), strict=True)
        gap = max(float(abs(a.sampled - b.sampled).max()) for a, b in pairs)  # type: ignore[operator]
        text = f"scores in {scheme} are those of the weights that it stands for"
        device.require(gap < 0.1, text, largest_nats=gap, changed_by=str(noise), **speeds)
        teacher = None  # type: ignore[assignment]
        device.reset_memory()


def int8_moments(device: Device) -> None:
    """Updates with moments of 8 bits move the weights as float32 moments do."""
    layers, vocab = 2, 9000
    teacher = make_model(device, "0.6B", torch.float32, seed=1, layers=layers, vocab=vocab)
    base = make_model(device, "0.6B", torch.float32, layers=layers, vocab=vocab)
    batch = make_batch(teacher, make_rollouts(base, 16, 16 if device.tiny else 256), Objective())
    changes, held = {}, {}
    kinds: tuple[Literal["float32", "int8"], ...] = ("float32", "int8")
    for moments in kinds:
        student = LM(copy.deepcopy(base.model), base.vocab, base.name)
        learner = make_learner(student, teacher, moments=moments)
        changes[moments] = change_of(learner, batch)
        state = learner.optimizer.state.values()
        held[moments] = sum(t.nbytes for s in state for t in s.values()) / GIB
    cosine = cosine_of(changes["float32"], changes["int8"])
    text = f"{UPDATES} updates with int8 moments move what float32 moments move"
    device.require(cosine > 0.98, text, cosine=cosine, gib=held["int8"], float32=held["float32"])


def adapters_with_large_teacher(device: Device) -> None:
    """A step of adapters on an 8B student with a 32B teacher in nf4 beside it, at 4,096 tokens."""
    rows, length = (4, 8) if device.tiny else (8, 4096)
    base = make_model(device, "8B")
    student = add_lora(base, rank=32, alpha=64, target_modules="all-linear", seed=0)
    enable_checkpointing(student)
    teacher = _deep_teacher(device, "32B", "nf4")
    learner = make_learner(student, None, tokens=8192, lr=1e-4)
    held = device.allocated()
    numbers = measure_step(device, student, teacher, learner, (rows, length))
    text = f"adapters on 8B with a 32B teacher in nf4, {rows} rows of {length} tokens"
    device.measure(text, held_gib=held, **numbers)


def _deep_teacher(device: Device, name: str, scheme: Scheme) -> LM:
    """A quantised teacher whose layers are copies of one, so that it is never there in full."""
    lm = make_model(device, name, seed=1, layers=1)
    quantise(lm.model, scheme, None)
    layers = (TINY if device.tiny else SHAPES[name]).layers
    causal: Any = lm.model
    for index in range(1, layers):
        layer = copy.deepcopy(causal.model.layers[0])
        layer.self_attn.layer_idx = index
        causal.model.layers.append(layer)
    causal.config.num_hidden_layers = layers
    causal.config.layer_types = causal.config.layer_types[:1] * layers
    return lm
