"""A memory plan against the bytes that a real update and a real teacher hold."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from opd import config
from opd.core.batch import Batch
from opd.core.chunked import CHUNK_ELEMENTS
from opd.models.attention import use_grouped_attention
from opd.models.lm import LM, add_lora, enable_checkpointing, load_lm
from opd.models.master_weights import add_master_weights
from opd.setup.memory_models import HOST, DeviceMemory
from opd.setup.memory_plan import PROCESS, plan_memory
from opd.setup.objective import make_objective
from opd.teachers.local import LocalTeacher
from opd.training.step import update
from opd.types import Prompt, Rollout
from support.everyday import everyday
from support.live_bytes import LiveBytes
from support.updates import learner_of

SMOLLM2 = os.environ.get("OPD_SMOLLM2")
WITHIN = 0.2
VOCAB, PROMPT, COMPLETION, ROWS = 12_000, 64, 192, 8
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
}


def run_config(*, precision="float32", lora=None, checkpointing=False, loss=None, model="random"):
    return config.parse(
        {
            "student": {
                "model": model,
                "precision": precision,
                "lora": lora,
                "gradient_checkpointing": checkpointing,
            },
            "teacher": {"model": model, "dtype": "float32"},
            "prompts": {"path": "prompts.jsonl", "max_tokens": PROMPT},
            "rollout": {"max_new_tokens": COMPLETION, "n": 2},
            "loss": {"k": 16} | (loss or {}),
            "train": {"prompts_per_step": ROWS // 2, "tokens_per_microbatch": 2048},
            "diagnostics": {"positions": 64},
            "output": {"dir": "runs/x"},
        }
    )


def random_lm(cfg) -> LM:
    model = AutoModelForCausalLM.from_config(Qwen3Config(**SHAPE), dtype=torch.float32).eval()
    use_grouped_attention(model)
    return prepared(LM(model, VOCAB, "random"), cfg)


def prepared(lm: LM, cfg) -> LM:
    section = cfg.student
    if section.precision == "bf16_mixed" and section.lora is not None:
        lm.model.to(torch.bfloat16)
    if section.lora is not None:
        lora = section.lora
        modules = lora.target_modules
        lm = add_lora(lm, rank=lora.rank, alpha=lora.alpha, target_modules=modules, seed=0)
    elif section.precision == "bf16_mixed":
        add_master_weights(lm)
    if section.gradient_checkpointing:
        enable_checkpointing(lm)
    return lm


def rollouts(vocab: int) -> list[Rollout]:
    rng = np.random.default_rng(0)
    made = []
    for row in range(ROWS):
        prompt = Prompt(row, tuple(rng.integers(3, vocab, PROMPT).tolist()), "")
        ids = rng.integers(3, vocab, COMPLETION).tolist()
        topk = rng.integers(3, vocab, (COMPLETION, 16)).astype(np.int32)
        made.append(Rollout.of_ids(prompt, ids, topk_ids=topk))
    return made


def counted_update(cfg, student: LM, teacher: LM) -> int:
    """Most bytes that are alive in the second update, weights included; plan's tokens."""
    objective = make_objective(cfg)
    learner = learner_of(student, teacher, objective, budget=2048)
    learner = replace(learner, position_edges=[0, COMPLETION])
    made = rollouts(student.vocab)
    every = [np.arange(COMPLETION if objective.needs_full_teacher else 8) for _ in made]
    scores = LocalTeacher(teacher).score(made, objective.want._replace(full=every))
    batch = Batch(made, scores)
    known = [*student.model.parameters(), *student.model.buffers(), *student.weights().values()]
    known += [*teacher.model.parameters(), *teacher.model.buffers()]
    weights = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in known}
    with LiveBytes(known) as live:
        update(learner, batch, 0)
        live.peak = live.now
        update(learner, batch, 1)
    return live.peak + sum(weights.values())


def read_shape(name: str, key: str) -> Qwen3Config:
    return Qwen3Config(**SHAPE)


def planned_update(cfg, read) -> int:
    """The plan for the same, without what is neither model nor update."""
    plan = plan_memory(cfg, device="cpu", memory=DeviceMemory({}, {}), read=read)
    (phase,) = [p for p in plan.phases if p.phase == "update" and p.device == HOST]
    return phase.total - PROCESS - phase.parts["rollouts and scores"]


CASES = {
    "float32": {},
    "bf16_mixed": {"precision": "bf16_mixed"},
    "lora": {"lora": {"rank": 8}},
    "lora in bf16": {"lora": {"rank": 8}, "precision": "bf16_mixed"},
    "checkpointing": {"checkpointing": True},
    "checkpointing in bf16": {"precision": "bf16_mixed", "checkpointing": True},
    "tail": {"loss": {"mode": "tail"}},
    "full": {"loss": {"support": "full"}},
    "jsd": {"loss": {"support": "full", "divergence": "jsd"}},
}


@pytest.mark.parametrize("case", everyday(CASES.values(), 3, 6), ids=CASES)
def test_an_update_takes_what_is_planned(case):
    cfg = run_config(**case)
    student, teacher = random_lm(cfg), random_lm(run_config())
    counted = counted_update(cfg, student, teacher)
    assert planned_update(cfg, read_shape) == pytest.approx(counted, rel=WITHIN)


@pytest.mark.parametrize("name", everyday(["tail", "full", "jsd"], 0))
def test_an_update_with_the_blocks_of_a_gpu(name, monkeypatch):
    """There elementwise work takes a whole chunk at a time."""
    for module in ("opd.core.chunked", "opd.setup.memory_work"):
        monkeypatch.setattr(f"{module}.CPU_BLOCK_ELEMENTS", CHUNK_ELEMENTS)
    cfg = run_config(**CASES[name])
    counted = counted_update(cfg, random_lm(cfg), random_lm(run_config()))
    assert planned_update(cfg, read_shape) == pytest.approx(counted, rel=WITHIN)


@pytest.mark.parametrize("name", ["float32", "tail"])
def test_scores_take_what_is_planned(name):
    cfg = run_config(**CASES[name])
    teacher, made = random_lm(run_config()), rollouts(VOCAB)
    with LiveBytes([*teacher.model.parameters(), *teacher.model.buffers()]) as live:
        LocalTeacher(teacher, tokens_per_batch=2048).score(made, make_objective(cfg).want)
    plan = plan_memory(cfg, device="cpu", memory=DeviceMemory({}, {}), read=read_shape)
    (phase,) = [p for p in plan.phases if p.phase == "score"]
    assert phase.parts["teacher's forward"] == pytest.approx(live.peak, rel=WITHIN)


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="OPD_SMOLLM2 names no folder of SmolLM2-135M")
@pytest.mark.parametrize("name", ["float32", "bf16_mixed", "lora", "checkpointing", "tail"])
def test_an_update_of_a_real_model_takes_what_is_planned(name):
    cfg = run_config(model=SMOLLM2, **CASES[name])
    student = prepared(load_lm(SMOLLM2, dtype="float32", device="cpu"), cfg)
    teacher = load_lm(SMOLLM2, dtype="float32", device="cpu")
    counted = counted_update(cfg, student, teacher)
    planned = planned_update(cfg, None)
    print(f"{name}: planned {planned / 1e9:.2f} GB, counted {counted / 1e9:.2f} GB")  # noqa: T201
    assert planned == pytest.approx(counted, rel=WITHIN)
