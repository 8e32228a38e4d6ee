"""What an update may not build, and what it does when memory runs out."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opd.core.microbatches import MicroBatchGroup
from opd.core.objective import Objective
from opd.errors import UserError
from opd.models.lm import LM, add_lora, is_out_of_memory
from opd.testing import tiny_model
from opd.training.learner import MicroBatchSplits
from opd.training.step import accumulate_within_memory, update
from support.everyday import everyday
from support.updates import (
    CPU_OOM,
    FLOAT64_SUM,
    OBJECTIVES,
    clone,
    close,
    experience,
    gradients,
    learner_of,
    run_out_of_memory,
)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(
    "error",
    everyday(
        [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_OOM), MemoryError()], 0
    ),
    ids=["cuda", "cpu", "python"],
)
@pytest.mark.parametrize("name", ["paper", "full"])
def test_micro_batches_are_halved_and_the_gradient_is_the_same(
    make_lm, make_prompts, caplog, monkeypatch, name, error, where
):
    monkeypatch.setattr("opd.core.microbatches.PASS_OVERHEAD_CPU", 256)  # all rollouts at a time
    base, teacher, objective = make_lm(0), make_lm(1), OBJECTIVES[name]
    batch = experience(base, teacher, objective, make_prompts(3, 8, 5))
    plain, cut = clone(base), clone(base)
    wanted = accumulate_within_memory(learner_of(plain, teacher, objective), batch, 0)
    learner = learner_of(cut, teacher, objective)
    seen = run_out_of_memory(cut, error, 3, where)
    with caplog.at_level(logging.WARNING):
        found = accumulate_within_memory(learner, batch, 0)
    close(gradients(cut), gradients(plain))
    assert found[1].item() == pytest.approx(wanted[1].item(), rel=FLOAT64_SUM)
    assert max(seen) == 9
    assert learner.splits.halvings == 2  # 9 rollouts, then 5, then 3
    assert "train.tokens_per_microbatch" in caplog.text
    failed = len(seen)
    accumulate_within_memory(learner, batch, 1)
    assert max(seen[failed:]) <= 3  # the next step does not try again what failed


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError(CPU_OOM), True),
        (MemoryError(), True),
        # What torch does not allocate itself: a graph, pinned memory, a workspace.
        (RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_what_is_taken_for_exhausted_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_rollout_that_does_not_fit_alone_is_said(make_lm, make_prompts):
    student, teacher, objective = make_lm(0), make_lm(1), OBJECTIVES["paper"]
    batch = experience(student, teacher, objective, make_prompts(3))
    learner = learner_of(student, teacher, objective)
    run_out_of_memory(student, RuntimeError(CPU_OOM), 0, "forward")
    with pytest.raises(UserError, match="gradient_checkpointing"):
        update(learner, batch, 0)


def test_other_errors_are_not_taken_for_memory(make_lm, make_prompts):
    student, teacher, objective = make_lm(0), make_lm(1), OBJECTIVES["paper"]
    batch = experience(student, teacher, objective, make_prompts(3))
    run_out_of_memory(student, RuntimeError("shapes do not match"), 0, "forward")
    learner = learner_of(student, teacher, objective)
    with pytest.raises(RuntimeError, match="shapes"):
        update(learner, batch, 0)
    assert learner.splits.halvings == 0


def test_cutting_loses_no_rollout():
    found = MicroBatchSplits(2).apply([MicroBatchGroup([[4, 1, 7, 0, 2]]), MicroBatchGroup([[3]])])
    assert [group.microbatches for group in found] == [[[4, 1]], [[7]], [[0]], [[2]], [[3]]]


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("name", ["paper", "tail", "full", "union"])
def test_sparse_gradients_are_the_dense_ones(make_lm, make_prompts, monkeypatch, name, tie):
    base, teacher, objective = make_lm(0, tie=tie), make_lm(1, tie=tie), OBJECTIVES[name]
    batch = experience(base, teacher, objective, make_prompts(3, 8, 5))
    dense, sparse = clone(base), clone(base)
    accumulate_within_memory(learner_of(dense, teacher, objective, budget=40), batch, 0)
    for module in ("head", "lm"):
        monkeypatch.setattr(f"opd.models.{module}.SPARSE_VOCAB", 1)
    learner = learner_of(sparse, teacher, objective, budget=40)
    accumulate_within_memory(learner, batch, 0)
    close(gradients(sparse), gradients(dense))
    assert not sparse.causal.get_input_embeddings().sparse  # as it was
    update(learner, batch, 0)


def test_sparse_gradients_leave_adapters_alone(make_lm, make_prompts, monkeypatch):
    for module in ("head", "lm"):
        monkeypatch.setattr(f"opd.models.{module}.SPARSE_VOCAB", 1)
    base, teacher, objective = make_lm(0), make_lm(1), OBJECTIVES["paper"]
    batch = experience(base, teacher, objective, make_prompts(3))
    student = add_lora(clone(base), rank=2, alpha=4, target_modules="all-linear", seed=0)
    update(learner_of(student, teacher, objective), batch, 0)
    assert student.causal.get_output_embeddings().weight.grad is None


class Largest(TorchDispatchMode):
    """The most elements any tensor had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and not leaf.is_sparse:
                self.elements = max(self.elements, leaf.numel())
        return out


@pytest.mark.parametrize("name", ["paper", "full"])
def test_nothing_of_tokens_times_vocabulary_at_262k(make_prompts, name):
    vocab, objective = 262_144, Objective(k=4, support="full" if name == "full" else "student_topk")
    model = tiny_model(0, dtype=torch.float32, vocab=vocab)
    student = LM(model, vocab, "large")
    teacher = LM(copy.deepcopy(model), vocab, "teacher")
    batch = experience(student, teacher, objective, make_prompts(3, 5, 4, 6))
    assert batch.num_tokens > 70
    learner = learner_of(student, teacher, objective)
    with Largest() as largest:
        accumulate_within_memory(learner, batch, 0)
    weight = 16 * vocab
    # default: the head's gradient is the largest; else one chunk of logits. Diagnostics included.
    assert weight <= largest.elements <= 16 * 2**20 < batch.num_tokens * vocab
