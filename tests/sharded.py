"""What `test_shard` runs in two processes: each kind of student trained whole and in pieces.

python -m torch.distributed.run --standalone --nproc_per_node 2 tests/sharded.py out.json KIND...
"""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from opd.cli import end
from opd.core.objective import Objective
from opd.data.sft_examples import make_example
from opd.models.fsdp import full_tensor, gather_model, shard_model, unsharded
from opd.models.lm import LM, add_lora, enable_checkpointing
from opd.models.master_weights import add_master_weights
from opd.models.saving import save_final
from opd.run.disk import DISK
from opd.run.folder import RunFolder
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.testing import tiny_model, tiny_tokenizer
from opd.training.checkpoints import restore, write_checkpoint
from opd.training.distributed import ShardedSampler, destroy_ranks, init_ranks
from opd.training.learner import Learner
from opd.training.optimizer import NonFiniteStep, make_optimizer
from opd.training.step import update
from opd.types import Prompt
from support.updates import experience, learner_of

STEPS = 2


DTYPES = {"bfloat16": torch.bfloat16, "mixed": torch.float32}


def student_of(kind: str) -> LM:
    model = tiny_model(0, tie=kind != "untied", dtype=DTYPES.get(kind, torch.float64))
    lm = LM(model, model.config.vocab_size, "tiny")
    if kind == "lora":
        lm = add_lora(lm, rank=2, alpha=4.0, target_modules="all-linear", seed=0)
    if kind == "checkpointed":
        enable_checkpointing(lm)
    return lm


def whole_student(kind: str) -> LM:
    """As one process trains it: with masters in bf16_mixed, which shards are themselves."""
    lm = student_of(kind)
    if kind == "mixed":
        add_master_weights(lm)
    return lm


def prompts() -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [Prompt(i, tuple(rng.integers(3, 40, n).tolist()), "") for i, n in enumerate((3, 8, 5))]


def trained(learner: Learner, batches) -> list[dict[str, float]]:
    metrics = []
    for step, batch in enumerate(batches):
        means = update(learner, batch, step)
        metrics.append({name: mean.value for name, mean in means.items()})
    return metrics


def weights(lm: LM) -> dict[str, torch.Tensor]:
    return {n: full_tensor(w.detach()).clone() for n, w in lm.weights().items()}


def worst(a, b) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def compare(kind: str, folder: Path) -> dict[str, float]:
    """Distances between a student trained alone and the same one in two pieces."""
    ranks = init_ranks()
    base = student_of(kind)
    model = tiny_model(1, dtype=base.causal.dtype)
    teacher = LM(model, model.config.vocab_size, "teacher")
    objective = Objective(k=4) if kind != "untied" else Objective(k=4, mode="tail")
    examples = [make_example(i, p.ids, [7, 8, 9 + i, 1]) for i, p in enumerate(prompts())]
    # 10 tokens: eleven micro-batches or so, an odd number for two processes.
    batches = [experience(base, teacher, objective, prompts(), seed=s) for s in range(STEPS)]
    batches[1] = replace(batches[1], sft_examples=examples)
    alone = learner_of(whole_student(kind), teacher, objective, budget=10)
    alone = replace(alone, sft_weight=0.5)
    shared = replace(alone, student=student_of(kind), ranks=ranks)
    shard_model(shared.student, ranks.size, mixed=kind == "mixed")
    shared = replace(shared, optimizer=make_optimizer(shared.student, shared.optim))
    mine = sum(p.to_local().numel() for p in shared.student.model.parameters())
    metrics = trained(alone, batches), trained(shared, batches)
    found = {
        "share": mine / shared.student.num_parameters(),
        "parts": len(batches[0].split(10)),
        "metrics": max(  # of large ones, such as the norm of the gradient, relative
            abs(a[name] - b[name]) / max(1.0, abs(a[name]))
            for a, b in zip(*metrics, strict=True)
            for name in a
        ),
        "weights": worst(weights(alone.student), weights(shared.student)),
    }
    assert all(a.keys() == b.keys() for a, b in zip(*metrics, strict=True))
    found |= sampled(shared, alone, ranks) | saved(shared, alone, kind, folder, batches, ranks)
    return found


def sampled(shared: Learner, alone: Learner, ranks) -> dict[str, float]:
    """Completions drawn from the pieces; then one process goes on by itself."""
    draw = Decoding(9), {"stop": frozenset({1}), "capture": 4}
    lms = (alone.student, shared.student)
    samplers = [HFSampler(lm, draw[0], **draw[1]) for lm in lms]
    plain = samplers[0].sample(prompts(), n=2, key=(5,))
    both = ShardedSampler(samplers[1], ranks, shared.student).sample(prompts(), n=2, key=(5,))
    with unsharded(shared.student):
        if ranks.is_main:
            samplers[1].sample(prompts(), n=1, key=(6,))
    same = [np.array_equal(a.ids, b.ids) for a, b in zip(plain, both, strict=True)]
    return {"same_rollouts": float(np.mean(same))}


def saved(shared, alone, kind, folder, batches, ranks) -> dict[str, float]:
    """Checkpoint and final folder; both continue to the same student."""
    run = folder / kind
    if ranks.is_main:
        RunFolder.create(run, {"train": {"seed": 0}}).close()
    ranks.barrier()
    held = RunFolder(run, {}, DISK) if ranks.is_main else RunFolder.read_only(run, {})
    before = weights(shared.student)
    write_checkpoint(held, shared, STEPS, keep=1)
    ranks.barrier()
    after = trained(shared, batches[:1]), weights(shared.student)
    assert worst(before, after[1]) > 0
    step = restore(held, shared)
    again = trained(shared, batches[:1]), weights(shared.student)
    other = replace(alone, student=whole_student(kind))
    other = replace(other, optimizer=make_optimizer(other.student, other.optim))
    restore(held, other)
    elsewhere = trained(other, batches[:1]), weights(other.student)
    plain = gather_model(shared.student, keep=ranks.is_main)
    gap = 0.0
    if ranks.is_main:
        save_final(plain, tiny_tokenizer(), run / "final")
        final = load_file(run / "final" / "model.safetensors")
        merged = LM(copy.deepcopy(other.student.model), 40, "")
        save_final(merged, tiny_tokenizer(), run / "other")
        other_final = load_file(run / "other" / "model.safetensors")
        assert {n: w.dtype for n, w in final.items()} == {
            n: w.dtype for n, w in other_final.items()
        }
        gap = worst(final, other_final)
    return {
        "step": float(step),
        "steps": float(STEPS),
        "resumed": max(worst(after[1], again[1]), float(after[0] != again[0])),
        "resumed_alone": worst(after[1], elsewhere[1]),
        "final": gap,
    }


def placed() -> dict[str, float]:
    """A student stored in bf16 becomes float32 shards one unit at a time, of the same values."""
    ranks = init_ranks()
    model = tiny_model(0, dtype=torch.bfloat16)
    lm = LM(model, model.config.vocab_size, "tiny")
    values = {name: p.detach().float() for name, p in lm.model.named_parameters()}
    whole, units = [], []

    def watched(module, **options):
        parts = [p for p in lm.model.parameters() if not isinstance(p, DTensor)]
        whole.append(sum(p.numel() for p in parts if p.dtype == torch.float32))
        units.append(sum(p.numel() for p in module.parameters() if not isinstance(p, DTensor)))
        return fully_shard(module, **options)

    memory = (math.inf, 1.0)[ranks.rank]  # of two cards; gradients fit on one of them
    with (
        mock.patch("opd.models.fsdp.fully_shard", watched),
        mock.patch("opd.models.fsdp._device_memory", return_value=memory),
    ):
        shard_model(lm, ranks.size, mixed=True, dtype=torch.float32)
    shards = {name: full_tensor(p.detach()) for name, p in lm.model.named_parameters()}
    return {
        "units": float(len(units)),
        "whole": float(max(w - u for w, u in zip(whole, units, strict=True))),
        "float32": float(all(p.dtype == torch.float32 for p in shards.values())),
        "values": worst(values, shards),
        "works_in_bf16": float(lm.working_dtype == torch.bfloat16),
        "reduces_once": float(lm.sharded.reduces_once),  # at the one where they fit
    }


def refused() -> dict[str, float]:
    """A score that is not finite at one process refuses the update of both."""
    ranks = init_ranks()
    student, model = student_of("tied"), tiny_model(1)
    teacher = LM(model, model.config.vocab_size, "teacher")
    batch = experience(student, teacher, Objective(k=4), prompts())
    batch.scores[0].support[0] = np.inf
    shard_model(student, ranks.size)
    shared = replace(learner_of(student, teacher, Objective(k=4), budget=10), ranks=ranks)
    before = weights(student)
    try:
        update(shared, batch, 0)
    except NonFiniteStep:
        return {"moved": worst(before, weights(student))}
    return {"moved": 1.0}


def main() -> None:
    torch.use_deterministic_algorithms(True)
    ranks = init_ranks()
    out = Path(sys.argv[1])
    found = {kind: compare(kind, out.parent) for kind in sys.argv[2:]}
    found |= {"refused": refused(), "placed": placed()}
    if ranks.is_main:
        out.write_text(json.dumps(found))
    dist.barrier()
    destroy_ranks()
    end(0)


if __name__ == "__main__":
    main()
