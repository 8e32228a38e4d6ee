"""Is opd right on the device: parity, precision, optimizer movement, FSDP2, determinism."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from opd.core.objective import Objective
from opd.gpu_check.harness import Device
from opd.gpu_check.workload import (
    make_batch,
    make_learner,
    make_model,
    make_prompts,
    make_rollouts,
)
from opd.models.fsdp import full_tensor, shard_model
from opd.models.lm import LM
from opd.models.master_weights import add_master_weights
from opd.rng import Stream, torch_seed
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.training.deterministic import run_deterministic
from opd.training.gradient import accumulate
from opd.training.learner import Learner
from opd.training.step import update

OBJECTIVES = {
    "paper": Objective(k=4),
    "tail": Objective(k=4, mode="tail"),
    "reference": Objective(k=4, mode="reference"),
    "teacher_topk": Objective(k=4, support="teacher_topk"),
    "union": Objective(k=4, support="union"),
    "sampled": Objective(k=4, support="sampled"),
    "full": Objective(k=4, support="full"),
    "jsd": Objective(k=4, support="full", divergence="jsd"),
    "entropy": Objective(k=4, entropy_forward_kl=0.5),
}
# Relative error of a gradient by another order of summation; Qwen3 computes its norms and its
# rotary embedding in float32 whatever the model's dtype, GPT-2 computes nothing so.
TOLERANCE = {"Qwen3": 1e-5, "GPT-2": 1e-9}
UPDATES = 5  # of the comparison of precisions
LR = 1e-6  # the default rate, at which plain bf16 trains nothing


def parity(device: Device) -> None:
    """Every objective in float64: same tokens and gradients as on the CPU."""
    makers: dict[str, Callable[[Device, int, int], LM]] = {"Qwen3": _qwen3, "GPT-2": _gpt2}
    for family, make in makers.items():
        worst: dict[str, float] = {}
        for vocab in (40, 9000):
            pairs = [
                [make(Device(at, True, 0, device.out), vocab, seed) for seed in (0, 1)]
                for at in (torch.device("cpu"), device.at)
            ]
            for ours, theirs in zip(*pairs, strict=True):  # the two devices' random numbers differ
                theirs.model.load_state_dict(ours.model.state_dict())
            for name, objective in OBJECTIVES.items():
                worst[f"{name}/{vocab}"] = _largest_difference(pairs, objective, vocab)
        allowed = TOLERANCE[family]
        wrong = {name: gap for name, gap in worst.items() if not gap < allowed}
        text = f"float64, {family}: tokens and gradients of every objective are those of the CPU"
        device.require(not wrong, text, largest=max(worst.values()), allowed=allowed, wrong=wrong)


def _qwen3(device: Device, vocab: int, seed: int) -> LM:
    return make_model(device, "0.6B", torch.float64, vocab=vocab, seed=seed)


def _gpt2(device: Device, vocab: int, seed: int) -> LM:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(
        vocab_size=vocab, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes, **dropout
    )
    torch.manual_seed(torch_seed(seed, Stream.GPU_CHECK))
    model = GPT2LMHeadModel(config).to(device.at, torch.float64)
    return LM(model.eval(), vocab, "GPT-2")


def _largest_difference(pairs: list[list[LM]], objective: Objective, vocab: int) -> float:
    """Largest relative difference of a gradient between two devices; NaN if tokens differ."""
    prompts = make_prompts(4, 6, vocab)
    tokens, gradients = [], []
    for student, teacher in pairs:
        sampler = HFSampler(student, Decoding(9), stop=frozenset({1}), capture=4)
        rollouts = sampler.sample(prompts, n=3, key=(0,))
        learner = make_learner(student, teacher, objective)
        accumulate(learner, make_batch(teacher, rollouts, objective), 0)
        tokens.append([r.ids.tolist() for r in rollouts])
        gradients.append(_gradients(student))
        learner.optimizer.zero_grad()
    if tokens[0] != tokens[1]:
        return float("nan")
    return max(_relative(gradients[0][name], gradients[1][name]) for name in gradients[0])


def _gradients(lm: LM) -> dict[str, torch.Tensor]:
    parameters = lm.parameters().items()
    return {n: p.grad.detach().double().cpu() for n, p in parameters if p.grad is not None}


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm().clamp(min=1e-30))


def precision(device: Device) -> None:
    """The gradient in bf16 against float64, and what five updates at 1e-6 move."""
    shape: dict[str, Any] = {"layers": 2, "vocab": 9000}
    teacher = make_model(device, "0.6B", torch.float32, seed=1, **shape)
    base = make_model(device, "0.6B", torch.float32, **shape)
    rollouts = make_rollouts(base, 16, 16 if device.tiny else 256)
    batch = make_batch(teacher, rollouts, Objective())
    wide = _clone(base, torch.float64)
    accumulate(make_learner(wide, teacher), batch, 0)
    reference = _gradients(wide)
    changes = {}
    for name in ("float32", "bf16_mixed"):
        student = _clone(base, torch.float32)
        if name == "bf16_mixed":
            add_master_weights(student)
        learner = make_learner(student, teacher)
        accumulate(learner, batch, 0)
        gradients = _gradients(student)
        cosine = _cosine(reference, gradients)
        device.require(cosine > 0.99, f"gradient in {name} against float64", cosine=cosine)
        learner.optimizer.zero_grad()
        changes[name] = change_of(learner, batch)
    moved = {name: float((change != 0).double().mean()) for name, change in changes.items()}
    cosine = cosine_of(changes["float32"], changes["bf16_mixed"])
    text = f"{UPDATES} updates at {LR:g} in bf16_mixed move what float32 moves"
    enough = moved["bf16_mixed"] >= 0.99 * moved["float32"] and cosine >= 0.93
    device.require(enough, text, moved=moved, cosine=cosine)


def _clone(lm: LM, dtype: torch.dtype) -> LM:
    return LM(copy.deepcopy(lm.model).to(dtype), lm.vocab, lm.name)


def _cosine(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    flat = [torch.cat([each[name].flatten() for name in a]) for each in (a, b)]
    return cosine_of(flat[0], flat[1])


def cosine_of(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine of two flat tensors."""
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def change_of(learner: Learner, batch: object) -> torch.Tensor:
    """All weights after some updates minus before, flat, in float64 on the CPU."""
    before = {n: w.detach().clone() for n, w in learner.student.weights().items()}
    for step in range(UPDATES):
        update(learner, batch, step)  # type: ignore[arg-type]
    after = learner.student.weights()
    return torch.cat([(after[n].detach() - w).double().flatten().cpu() for n, w in before.items()])


def fsdp(device: Device) -> None:
    """FSDP2 with one process over the device's own backend is the plain update."""
    objective = Objective()
    shape: dict[str, Any] = {"layers": 2, "vocab": 9000}
    base = make_model(device, "0.6B", torch.float32, **shape)
    teacher = make_model(device, "0.6B", torch.float32, seed=1, **shape)
    batch = make_batch(teacher, make_rollouts(base, 8, 16 if device.tiny else 128), objective)
    backend = "cpu:gloo,cuda:nccl" if device.is_cuda else "gloo"
    dist.init_process_group(
        backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
    )
    try:
        for mixed in (False, True):
            plain, sharded = _clone(base, torch.float32), _clone(base, torch.float32)
            plain.prefix_cache_works = sharded.prefix_cache_works = False
            if mixed:
                add_master_weights(plain)
            update(make_learner(plain, teacher, tokens=1024, lr=1e-3), batch, 0)
            if mixed:  # as a run does it: from host memory, one unit at a time
                sharded.model.to("cpu")
            shard_model(sharded, 1, mixed=mixed, device=base.device)
            update(make_learner(sharded, teacher, tokens=1024, lr=1e-3), batch, 0)
            weights = plain.weights()
            differences = torch.cat(
                [
                    (full_tensor(w.detach()) - weights[n].detach()).flatten().abs()
                    for n, w in sharded.weights().items()
                ]
            )
            text = f"FSDP2 over {dist.get_backend()}, mixed={mixed}, is the plain update"
            mean = float(differences.double().mean())
            device.require(mean < 1e-5 if mixed else mean < 1e-7, text, mean_difference=mean)
    finally:
        dist.destroy_process_group()


def determinism(device: Device) -> None:
    """The gradient of one step three times: the same bits with train.deterministic?"""
    teacher = make_model(device, "0.6B", layers=4, seed=1)
    for name, flag in _determinism_cases():
        student = make_model(device, "0.6B", torch.float32, layers=4)
        if name == "bf16_mixed":
            add_master_weights(student)
        learner = make_learner(student, teacher)
        rollouts = make_rollouts(student, 16, 16 if device.tiny else 256)
        batch = make_batch(teacher, rollouts, learner.objective)
        gradients = []
        for _ in range(3):
            run_deterministic(flag, partial(accumulate, learner, batch, 0))
            gradients.append(_gradients(student))
        differ = [n for n in gradients[0] if not _equal(n, gradients)]
        text = f"one gradient three times, {name}, train.deterministic={str(flag).lower()}"
        if flag:
            device.require(not differ, text, differ=len(differ), first=differ[:3])
        else:
            device.measure(text, differ=len(differ), of=len(gradients[0]), first=differ[:3])
        student = learner = None  # type: ignore[assignment]
        device.reset_memory()


def _determinism_cases() -> Iterator[tuple[str, bool]]:
    for name in ("bf16_mixed", "float32"):
        for flag in (False, True):
            yield name, flag


def _equal(name: str, gradients: list[dict[str, torch.Tensor]]) -> bool:
    first = gradients[0][name]
    return all(np.array_equal(first.numpy(), g[name].numpy()) for g in gradients[1:])
