"""Out of memory in the teacher, deterministic updates, gradient buckets, copies in host memory."""

from __future__ import annotations

import logging
import os
import weakref

import numpy as np
import pytest
import torch

from opd import config
from opd.demo.run_config import demo_config
from opd.errors import UserError
from opd.models.lm import LM, add_lora, copy_on_cpu
from opd.run.console import Console
from opd.setup import models
from opd.teachers.local import LocalTeacher
from opd.training import deterministic as module
from opd.training.deterministic import run_deterministic
from opd.training.distributed import BUCKET_ELEMENTS, _buckets
from opd.types import Rollout, Want

WANT = Want(sampled=True, support=True)


def rollouts(prompts) -> list[Rollout]:
    made = []
    for prompt in prompts:
        ids = [7, 8, 9, 1][: 2 + prompt.index % 3]
        topk = np.tile(np.array([3, 4], dtype=np.int32), (len(ids), 1))
        made.append(Rollout.of_ids(prompt, ids, topk_ids=topk))
    return made


def fail_above(lm, tokens: int) -> None:
    """Every forward with more than `tokens` padded tokens runs out of memory."""

    def hook(module, args, kwargs):
        if kwargs["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    lm.causal.base_model.register_forward_pre_hook(hook, with_kwargs=True)


def test_a_teacher_that_runs_out_of_memory_scores_in_smaller_batches(make_lm, make_prompts, caplog):
    prompts = make_prompts(3, 8, 5, 6, 4, 7)
    expected = LocalTeacher(make_lm(1)).score(rollouts(prompts), WANT)
    lm = make_lm(1)
    fail_above(lm, 24)
    teacher = LocalTeacher(lm, tokens_per_batch=64)
    with caplog.at_level(logging.WARNING):
        scores = teacher.score(rollouts(prompts), WANT)
    assert teacher.tokens_per_batch < 64
    assert "Out of memory" in caplog.text
    for a, b in zip(scores, expected, strict=True):
        np.testing.assert_allclose(a.sampled, b.sampled, atol=1e-10)
        np.testing.assert_allclose(a.support, b.support, atol=1e-10)


def test_nothing_of_a_failed_scoring_is_kept_while_memory_is_given_back(
    make_lm, make_prompts, monkeypatch
):
    lm, states, alive = make_lm(1), [], []
    hidden = LM.hidden

    def computed(self, *args, **kwargs):
        if len(states) == 1:
            states.append(None)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        memory = hidden(self, *args, **kwargs).numpy().copy()  # which views keep as well
        states.append(weakref.ref(memory))
        return torch.from_numpy(memory)

    monkeypatch.setattr(LM, "hidden", computed)
    monkeypatch.setattr("opd.teachers.local.free_memory", lambda: alive.append(states[0]()))
    lm.prefix_cache_works = False
    LocalTeacher(lm, tokens_per_batch=24).score(rollouts(make_prompts(3, 8, 5, 6, 4, 7)), WANT)
    assert alive == [None]


def test_a_teacher_that_cannot_score_one_rollout_says_what_helps(make_lm, make_prompts):
    lm = make_lm(1)
    fail_above(lm, 3)
    with pytest.raises(UserError, match=r"teacher\.device"):
        LocalTeacher(lm, tokens_per_batch=64).score(rollouts(make_prompts(8)), WANT)


def test_deterministic_algorithms_are_strict_and_used_inside_only(monkeypatch):
    monkeypatch.setattr(module, "_lacking", set())
    seen = []

    def work():
        strict = not torch.is_deterministic_algorithms_warn_only_enabled()
        seen.append((torch.are_deterministic_algorithms_enabled(), strict))
        return "done"

    assert run_deterministic(True, work) == run_deterministic(False, work) == "done"
    assert [inside for inside, _ in seen] == [True, False]
    assert seen[0][1]  # with warn_only, attention keeps its kernels that are not deterministic
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_form_is_named_once_and_tolerated(caplog, monkeypatch):
    monkeypatch.setattr(module, "_lacking", set())
    attempts = []

    def work():
        attempts.append(torch.is_deterministic_algorithms_warn_only_enabled())
        if not attempts[-1]:
            raise RuntimeError("cumsum_cuda does not have a deterministic implementation, but ...")
        return len(attempts)

    with caplog.at_level(logging.WARNING):
        assert run_deterministic(True, work) == 2
        assert run_deterministic(True, work) == 3
    assert attempts == [False, True, True]
    assert caplog.text.count("cumsum_cuda") == 1
    assert not torch.are_deterministic_algorithms_enabled()


CUBLAS_ERROR = (
    "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
    "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic "
    "because it uses CuBLAS and you have CUDA >= 10.2. To enable deterministic behavior in this "
    "case, you must set an environment variable before running your PyTorch application: "
    "CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8."
)  # of torch, if the variable was set after the first matrix product


def test_a_process_that_used_its_gpu_before_is_warned_and_not_ended(caplog, monkeypatch):
    monkeypatch.setattr(module, "_lacking", set())

    def work():
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(CUBLAS_ERROR)
        return "done"

    with caplog.at_level(logging.WARNING):
        assert run_deterministic(True, work) == "done"
    assert "export CUBLAS_WORKSPACE_CONFIG=:4096:8" in caplog.text


def test_what_cublas_reads_is_set_before_any_model_is_loaded(tmp_path, monkeypatch):
    """`opd check`, its pilot and `recipe: auto` used the GPU before a run had set it."""
    monkeypatch.delenv(module.CUBLAS, raising=False)
    cfg = config.parse(demo_config(tmp_path / "run"), ["train.deterministic=true"])
    seen = []
    monkeypatch.setattr(models, "load_pair", lambda *a, **k: seen.append(os.environ[module.CUBLAS]))
    models.open_models(cfg, Console("quiet"))
    assert seen == [":4096:8"]


def test_other_errors_pass_through_deterministic_work():
    def fail():
        raise RuntimeError("CUDA error")

    with pytest.raises(RuntimeError, match="CUDA error"):
        run_deterministic(True, fail)
    assert not torch.are_deterministic_algorithms_enabled()


def test_buckets_hold_every_gradient_once_and_mix_no_dtypes():
    dtypes = (torch.float32, torch.float64, torch.float64)
    small = [torch.zeros(3, dtype=dtype) for dtype in dtypes]
    large = torch.empty(BUCKET_ELEMENTS, device="meta")
    assert [len(b) for b in _buckets([*small, large, large])] == [1, 2, 1, 1]


def test_a_copy_in_host_memory_shares_nothing_and_computes_the_same(make_lm):
    lm = add_lora(make_lm(), rank=2, alpha=4.0, target_modules="all-linear", seed=0)
    copied = copy_on_cpu(lm.model)
    assert not {p.data_ptr() for p in lm.model.parameters()} & {
        p.data_ptr() for p in copied.parameters()
    }
    ids = torch.arange(3, 9)[None]
    assert torch.equal(lm.model(input_ids=ids).logits, copied(input_ids=ids).logits)
    base = copied.get_base_model()
    assert base.get_input_embeddings().weight is base.get_output_embeddings().weight
