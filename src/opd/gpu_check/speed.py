"""Speed on the device: ceilings, waits per token, decoding, scoring, the update, a whole step."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial

import torch

from opd.core.objective import Objective
from opd.gpu_check.harness import Device
from opd.gpu_check.workload import (
    make_batch,
    make_learner,
    make_model,
    make_prompts,
    make_rollouts,
)
from opd.models.lm import LM, enable_checkpointing
from opd.models.master_weights import add_master_weights
from opd.run.devices import driver_version
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.teachers.local import LocalTeacher
from opd.testing import tiny_tokenizer
from opd.training.gradient import accumulate
from opd.training.step import update

MATRIX = 8192  # rows and columns of the product that measures the ceiling


def ceilings(device: Device) -> None:
    """Versions, and the largest matrix product in each precision."""
    import transformers

    name = torch.cuda.get_device_name() if device.is_cuda else "cpu"
    device.measure("versions", torch=torch.__version__, transformers=transformers.__version__)
    versions = {"cuda": str(torch.version.cuda), "driver": str(driver_version())}
    device.measure("device", name=name, **versions)
    if device.is_cuda:
        device.measure("matrix product", **{f"{k}_tflops": v for k, v in peaks(device).items()})


def peaks(device: Device) -> dict[str, float]:
    """TFLOP/s of a square product in bf16 and float32."""
    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        a, b = (torch.randn(MATRIX, MATRIX, device=device.at, dtype=dtype) for _ in range(2))
        torch.mm(a, b)
        rates[name] = 2 * MATRIX**3 / device.time(lambda a=a, b=b: torch.mm(a, b), 4) / 1e12  # type: ignore[misc]
    return rates


def synchronizations(device: Device) -> None:
    """How often the CPU waits for the device: per decoded token, and per update."""
    if not device.is_cuda:
        device.report("SKIP", "synchronisations: needs a GPU")
        return
    student, teacher = (make_model(device, "0.6B", layers=4, seed=s) for s in (0, 1))
    sampler = HFSampler(student, Decoding(160), stop=frozenset({1}), capture=16)
    prompts = make_prompts(8, 32, student.vocab)
    sampler.sample(prompts, n=4, key=(0,), limit=136)  # captures what it captures
    few, many = (
        _count_waits(lambda limit=limit: sampler.sample(prompts, n=4, key=(0,), limit=limit))  # type: ignore[misc]
        for limit in (8, 136)
    )
    per_token = (many - few) / 128
    device.require(per_token <= 1 / 16 + 0.05, "waits per decoded token", value=per_token)
    learner = make_learner(student, teacher, lr=1.0)
    batch = make_batch(teacher, make_rollouts(student, 16, 512), learner.objective)
    waits = _count_waits(lambda: accumulate(learner, batch, 0))
    device.measure("waits per update of 8,192 tokens", value=waits)


def _count_waits(work: Callable[[], object]) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def decoding(device: Device) -> None:
    """Milliseconds and tokens per second of the sampler, by context."""
    rows, new = (8, 12) if device.tiny else (128, 96)
    lm = make_model(device, "1.7B")
    for context in (16,) if device.tiny else (256, 1024, 2048):
        sampler = HFSampler(lm, Decoding(new), stop=frozenset({1}), capture=16)
        prompts = make_prompts(rows // 4, context, lm.vocab)

        def sample(limit: int, sampler: HFSampler = sampler, prompts: list = prompts) -> None:  # type: ignore[type-arg]
            sampler.sample(prompts, n=4, key=(1,), limit=limit)

        sample(new)
        device.reset_memory()
        short = device.time(lambda: sample(new // 3))
        whole = device.time(lambda: sample(new))
        per_token = (whole - short) / (new - new // 3)
        numbers = {"ms": 1e3 * per_token, "tokens_per_s": rows / per_token, "gib": device.peak()}
        text = f"decode 1.7B bf16, {rows} rows at context {context}"
        if device.is_cuda and context == 256:
            device.require(per_token <= 9e-3, f"{text}: at most 9 ms per token", **numbers)
        else:
            device.measure(text, **numbers)
    _long_phase(device, lm)


def _long_phase(device: Device, lm: LM) -> None:
    """A whole rollout phase with answers of unequal lengths: rows are refilled."""
    count, limit = (8, 12) if device.tiny else (64, 512)
    # About one token in `limit` / 2 ends an answer.
    ends = frozenset(range(3, 3 + max(1, 2 * lm.vocab // limit)))
    sampler = HFSampler(lm, Decoding(limit), stop=ends, capture=16)
    prompts = make_prompts(count, 64, lm.vocab)
    begin = time.perf_counter()
    rollouts = sampler.sample(prompts, n=8, key=(2,))
    device.synchronize()
    seconds, tokens = time.perf_counter() - begin, sum(map(len, rollouts))
    text = f"rollout phase, {count} prompts x 8, at most {limit} tokens"
    device.measure(
        text, seconds=seconds, tokens_per_s=tokens / seconds, mean=tokens / len(rollouts)
    )


def scoring(device: Device) -> None:
    """Tokens per second of a 4B teacher."""
    length = 32 if device.tiny else 2048
    teacher = make_model(device, "4B", seed=1)
    rollouts = make_rollouts(teacher, 16, length)
    local, objective = LocalTeacher(teacher, tokens_per_batch=16_384), Objective()
    local.score(rollouts[:4], objective.want)
    device.reset_memory()
    seconds = device.time(lambda: local.score(rollouts, objective.want))
    tokens = sum(map(len, rollouts))
    device.measure("score, 4B bf16 teacher", tokens_per_s=tokens / seconds, gib=device.peak())


def updates(device: Device) -> None:
    """Tokens and floating point operations per second of the update, by precision."""
    length = 32 if device.tiny else 1024
    ceiling = peaks(device) if device.is_cuda else {}
    teacher = make_model(device, "0.6B", seed=1)
    rollouts = make_rollouts(teacher, 16, length)
    batch = make_batch(teacher, rollouts, Objective())
    del teacher
    tokens = sum(len(r) + len(r.prompt.ids) for r in rollouts)
    for name in ("bf16_mixed", "float32"):
        student = make_model(device, "1.7B", torch.float32)
        if name == "bf16_mixed":
            add_master_weights(student)
        enable_checkpointing(student)
        learner = make_learner(student, None, tokens=16_384)
        update(learner, batch, 0)
        device.reset_memory()
        seconds = device.time(partial(update, learner, batch, 1))
        body = student.num_parameters() - student.head.weight.numel()
        # 6 per weight and token, and 2 more where activations are recomputed; attention left out.
        rate = 8 * body * tokens / seconds / 1e12
        numbers = {"tokens_per_s": tokens / seconds, "tflops": rate, "gib": device.peak()}
        peak = ceiling.get("bf16" if name == "bf16_mixed" else "float32")
        if peak:
            numbers["share_of_peak"] = rate / peak
        device.measure(f"update 1.7B {name}, {length}-token rows, checkpointed", **numbers)
        student = learner = None  # type: ignore[assignment]
        device.reset_memory()


def whole_step(device: Device) -> float:
    """Sample, score and update of a 1.7B student and a 4B teacher; seconds of the step."""
    rows, length = (4, 8) if device.tiny else (32, 256)
    student = make_model(device, "1.7B", torch.float32)
    add_master_weights(student)
    teacher = make_model(device, "4B", seed=1)
    learner = make_learner(student, teacher, tokens=16_384)
    sampler = HFSampler(student, Decoding(length), stop=frozenset({1}), capture=16)
    phases: dict[str, float] = {}

    def step(number: int) -> None:
        prompts = make_prompts(rows, 60, student.vocab)
        sampled: list = []  # type: ignore[type-arg]
        phases["rollout_s"] = device.time(
            lambda: sampled.extend(sampler.sample(prompts, n=1, key=(number,)))
        )
        batches: list = []  # type: ignore[type-arg]
        phases["score_s"] = device.time(
            lambda: batches.append(make_batch(teacher, sampled, learner.objective))
        )
        phases["update_s"] = device.time(lambda: update(learner, batches[0], number))

    step(0)
    device.reset_memory()
    step(1)
    seconds = sum(phases.values())
    numbers = {"seconds": seconds, "gib": device.peak(), **phases}
    device.measure(f"opd step in bf16_mixed, {rows} x {length} tokens", **numbers)
    return seconds


def trl_step(device: Device) -> None:
    """The same step by TRL with its defaults, where it is installed."""
    try:
        from datasets import Dataset
        from transformers import TrainerCallback
        from trl import DistillationConfig, DistillationTrainer
    except ImportError as error:
        device.report("SKIP", f"TRL is not installed ({error.name})")
        return
    rows, length = (4, 8) if device.tiny else (32, 256)
    student = make_model(device, "1.7B", torch.float32, plain=True)
    teacher = make_model(device, "4B", seed=1, plain=True)
    prompts = [" ".join(f"w{3 + (11 * i + j) % 8000}" for j in range(60)) for i in range(rows)]
    marks: list[float] = []

    class Marks(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: object, **__: object) -> None:
            device.synchronize()
            marks.append(time.perf_counter())

    each = 2 if device.tiny else 8
    config = DistillationConfig(
        output_dir=str(device.out / "trl"),
        per_device_train_batch_size=each,
        gradient_accumulation_steps=rows // each,
        max_completion_length=length,
        max_steps=2,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        beta=1.0,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not device.is_cuda,
        bf16=device.is_cuda,
    )
    trainer = DistillationTrainer(
        model=student.model,
        teacher_model=teacher.model,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": text} for text in prompts]),
        processing_class=tiny_tokenizer(student.vocab),
        callbacks=[Marks()],
    )
    device.reset_memory()
    trainer.train()
    seconds = marks[-1] - marks[-2]
    device.measure(f"TRL step, {rows} x {length} tokens", seconds=seconds, gib=device.peak())
