"""Memory on the device: attention, and what happens when it runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch

from opd.core.batch import Batch
from opd.core.objective import Objective
from opd.gpu_check.harness import GIB, Device
from opd.gpu_check.workload import (
    make_batch,
    make_learner,
    make_model,
    make_prompts,
    make_rollouts,
)
from opd.models.lm import LM, enable_checkpointing
from opd.models.master_weights import add_master_weights
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.teachers.local import LocalTeacher
from opd.training.learner import Learner
from opd.training.step import update


def attention(device: Device) -> None:
    """One layer of 4B: its memory must not grow with the square of the length."""
    length = 64 if device.tiny else 4096
    for dtype in (torch.bfloat16, torch.float32):
        lm = make_model(device, "4B", dtype, layers=1, vocab=1024)
        ids = torch.randint(3, 1000, (1, length), device=device.at)

        def run(lm: LM = lm, ids: torch.Tensor = ids) -> None:
            lm.hidden(ids).float().square().sum().backward()  # type: ignore[no-untyped-call]
            lm.model.zero_grad(set_to_none=True)

        run()
        device.reset_memory()
        before = device.allocated()
        seconds = device.time(run, 2)
        above = device.peak() - before
        scores = lm.config.num_attention_heads * length**2 * 4 / GIB
        text = f"attention of a 4B layer at {length} tokens in {_name(dtype)} stays linear"
        numbers = {"above_gib": above, "one_score_matrix_gib": scores, "seconds": seconds}
        if device.is_cuda:
            device.require(above < scores, text, **numbers)
        else:
            device.measure(text, **numbers)


def out_of_memory(device: Device) -> None:
    """Update, sampler and teacher begin again with less when memory runs out."""
    if not device.is_cuda:
        device.report("SKIP", "out of memory: needs a GPU")
        return
    student = make_model(device, "0.6B", torch.float32)
    add_master_weights(student)
    teacher = make_model(device, "0.6B", seed=1)
    rollouts = make_rollouts(student, 32, 512)
    objective = Objective()
    batch = make_batch(teacher, rollouts, objective)
    learner = make_learner(student, teacher, tokens=16_384)
    update(learner, batch, 0)  # moments exist from here on
    with limited(device, 12.0):
        metrics = update(learner, batch, 1)
    halvings = learner.splits.halvings
    numbers = {"halvings": halvings, "loss": metrics["train/loss"].value}
    device.require(halvings > 0, "the update halves its micro-batches", **numbers)
    scorer = LocalTeacher(teacher, tokens_per_batch=65_536)
    long = make_rollouts(student, 32, 2048)
    with limited(device, 0.75):
        scorer.score(long, objective.want)
    tokens = scorer.tokens_per_batch
    device.require(tokens < 65_536, "the teacher scores fewer tokens at a time", tokens=tokens)
    sampler = HFSampler(student, Decoding(512), stop=frozenset({1}), capture=16)
    prompts = make_prompts(64, 256, student.vocab)
    with limited(device, 4.0):
        sampled = sampler.sample(prompts, n=4, key=(0,), limit=256)
    device.require(len(sampled) == 256, "the sampler fits its rows into 4 GiB", rows=len(sampled))


def full_fine_tuning(device: Device) -> None:
    """A step of a 4B student, all weights, with an 8B teacher beside it, at 4,096 tokens.

    Masters and moments are in host memory (optim.offload: cpu).
    """
    rows, length = (4, 8) if device.tiny else (8, 4096)
    student = make_model(device, "4B", torch.bfloat16)
    add_master_weights(student, on_cpu=True)
    enable_checkpointing(student)
    teacher = make_model(device, "8B", seed=1)
    learner = make_learner(student, None, tokens=8192)
    numbers = measure_step(device, student, teacher, learner, (rows, length))
    text = f"4B student in full with an 8B teacher, {rows} rows of {length} tokens, offload"
    device.measure(text, **numbers)


def measure_step(
    device: Device, student: LM, teacher: LM, learner: Learner, size: tuple[int, int]
) -> dict[str, float]:
    """Peak memory and seconds of rollout, score and update; the update is a second one.

    Args:
        device: of both models.
        student: samples four responses to each prompt, a 64th of the length.
        teacher: scores.
        learner: of the student.
        size: rows and tokens of what is scored and learned.
    """
    rows, length = size
    numbers: dict[str, float] = {}

    def measure(phase: str, work: Callable[[], object]) -> None:
        device.reset_memory()
        numbers[f"{phase}_s"] = device.time(work)
        numbers[f"{phase}_gib"] = device.peak()

    prompts = make_prompts(rows, length - length // 64, student.vocab)
    sampler = HFSampler(student, Decoding(length // 64 or 1), stop=frozenset({1}), capture=16)
    measure("rollout", lambda: sampler.sample(prompts, n=4, key=(0,)))
    rollouts = make_rollouts(student, rows, length)
    batches: list[Batch] = []
    score = partial(make_batch, teacher, rollouts, learner.objective)
    measure("score", lambda: batches.append(score()))
    update(learner, batches[0], 0)  # allocates moments
    measure("update", lambda: update(learner, batches[0], 1))
    return numbers


@contextlib.contextmanager
def limited(device: Device, gib: float) -> Iterator[None]:
    """Let the process allocate `gib` more than it holds now."""
    device.reset_memory()
    total = torch.cuda.get_device_properties(device.at).total_memory
    allowed = (torch.cuda.memory_allocated() + gib * GIB) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        device.reset_memory()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
