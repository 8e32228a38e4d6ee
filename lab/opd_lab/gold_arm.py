"""The arm of `opd_lab.tokenizers_trial` that TRL's GOLD trains, where TRL is installed."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from opd.models.lm import load_lm
from opd.models.saving import save_final
from opd.models.tokenizers import load_tokenizer
from opd_lab.runs import one_thread

logger = logging.getLogger(__name__)


def has_gold() -> bool:
    """Whether TRL is installed."""
    return importlib.util.find_spec("trl") is not None


def gold_settings(steps: int, prompts: int, n: int, tokens: int, lr: float) -> dict[str, Any]:
    """GOLD's settings for what the other arms do.

    On-policy, at temperature 1, its hybrid loss with its own weights, chunks by its exact rule.

    Args:
        steps: of the optimizer.
        prompts: a step.
        n: responses to a prompt.
        tokens: that a response may have.
        lr: learning rate, constant.
    """
    return {
        "max_steps": steps,
        "per_device_train_batch_size": prompts * n,
        "num_generations": n,
        "max_completion_length": tokens,
        "max_length": 512,
        "lmbda": 1.0,
        "beta": 1.0,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "use_uld_loss": True,
        "use_extended_uld": True,
        "uld_use_hybrid_loss": True,
        "uld_token_merge_strategy": "bayesian",
        "uld_skip_student_eos": False,
        "uld_skip_teacher_eos": False,
        "learning_rate": lr,
        "warmup_steps": 0,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "gradient_checkpointing": False,
    }


def gold_student(
    student: str, teacher: Path, prompts: Path, settings: dict[str, Any], out: Path, seed: int = 0
) -> float:
    """Train a student with GOLD, unless it is there; minutes that took.

    Args:
        student: folder of its weights, trained in float32 under bf16 autocast (TRL's way).
        teacher: folder of weights with a tokenizer.
        prompts: a file of chats and answers; the answers are not used at lmbda = 1.
        settings: of `GOLDConfig`.
        out: folder that the student is written to.
        seed: of order and samples.
    """
    note = out / "gold.json"
    if note.exists():
        minutes: float = json.loads(note.read_text("utf-8"))["minutes"]
        return minutes
    tokenizer, model = load_tokenizer(student), load_lm(student, dtype="float32")
    began = time.monotonic()
    weights, losses = _train(student, tokenizer, teacher, prompts, settings | {"seed": seed})
    minutes = (time.monotonic() - began) / 60
    model.causal.load_state_dict(weights)
    made = out.with_name(f".{out.name}")
    shutil.rmtree(made, ignore_errors=True)
    save_final(model, tokenizer, made)
    (made / note.name).write_text(json.dumps({"minutes": minutes, "losses": losses}))
    made.rename(out)
    logger.info("%s: %.1f minutes, losses %s", out.name, minutes, losses)
    return minutes


def _train(
    student: str, tokenizer: Any, teacher: Path, prompts: Path, settings: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The student's weights afterwards, and the loss of every step."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    rows = [json.loads(line) for line in prompts.read_text("utf-8").splitlines()]
    chats = [
        {"prompt": r["prompt"], "completion": [{"role": "assistant", "content": r["answer"]}]}
        for r in rows
    ]
    causal = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        config = GOLDConfig(
            output_dir=folder,
            bf16=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            teacher_tokenizer_name_or_path=str(teacher),
            **settings,
        )
        trainer = GOLDTrainer(
            model=causal,
            teacher_model=AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16),
            args=config,
            train_dataset=Dataset.from_list(chats),
            processing_class=tokenizer,
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return causal.state_dict(), losses
