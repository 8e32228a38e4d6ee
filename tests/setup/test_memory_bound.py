"""What is said about memory before torch is imported agrees with what the plan says after."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from opd import config
from opd.config import LocalTeacher
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.models.model_files import count_elements
from opd.setup import memory_bound
from opd.setup.memory_advice import fixed_bytes
from opd.setup.memory_bound import (
    SPARE,
    is_memory_known,
    least_bytes,
    most_bytes,
    require_memory_for_weights,
)
from opd.setup.memory_plan import plan_memory
from support.mistakes import make_workspace, run_yaml, type_command

CHANGES = {
    "float32": (),
    "bf16_mixed": ("student.precision=bf16_mixed",),
    "int8 moments": ("optim.moments=int8",),
    "adapters": ("student.lora={}",),
    "adapters over four bits": ("student.lora={weights: nf4}",),
    "teacher in bf16": ("teacher.dtype=bfloat16",),
    "teacher in int8": ("teacher.dtype=int8",),
    "teacher in four bits": ("teacher.dtype=nf4",),
    "float64": ("student.precision=float64", "teacher.dtype=float64"),
    "large adapters": ("student.lora={rank: 64}", "student.precision=float64"),
    "reference": (f"loss.terms={{reference: {PAIR / 'teacher'}, reward_scale: 1.25}}",),
    "frozen self": ("teacher={from: student, prompt: '{answer} {prompt}'}",),
    "self of adapters": (
        "teacher={from: student, prompt: '{answer} {prompt}'}",
        "student.lora={}",
    ),
}
FOLDERS = PAIR / "student", [PAIR / "teacher"]


def bound(cfg, monkeypatch):
    """The number of bytes below which the run is refused."""
    low, high = 0, 2**40
    while low < high:
        middle = (low + high) // 2
        monkeypatch.setattr(memory_bound, "free_host_bytes", lambda middle=middle: middle)
        try:
            require_memory_for_weights(cfg, *FOLDERS)
            high = middle
        except UserError:
            low = middle + 1
    return low


@pytest.mark.parametrize("name", CHANGES)
def test_the_plan_lies_between_the_bounds(name, monkeypatch):
    monkeypatch.setattr(memory_bound, "may_have_gpu", lambda: False)
    cfg = parsed(*CHANGES[name])
    folders = FOLDERS if isinstance(cfg.teacher, LocalTeacher) else (FOLDERS[0], [])
    planned = fixed_bytes(plan_memory(cfg, device="cpu"), "cpu")
    assert 0.2 * planned < bound(cfg, monkeypatch) <= planned
    assert planned <= most_bytes(cfg, *folders) <= 3 * planned + SPARE
    for free, known in ((planned, False), (2**40, True), (1, True)):
        monkeypatch.setattr(memory_bound, "free_host_bytes", lambda free=free: free)
        assert is_memory_known(cfg, *folders) is known


def test_bounds_of_full_training_are_close():
    cfg = parsed("student.precision=float32", "teacher.dtype=float32")
    assert most_bytes(cfg, *FOLDERS) - SPARE == pytest.approx(least_bytes(cfg, *FOLDERS))


@pytest.mark.parametrize("wanted", [["q_proj", "foo"], ".*q_proj", []])
def test_memory_is_not_known_where_adapters_may_fit_no_module(wanted, monkeypatch):
    monkeypatch.setattr(memory_bound, "may_have_gpu", lambda: False)
    monkeypatch.setattr(memory_bound, "free_host_bytes", lambda: 2**40)
    known = parsed("student.lora={target_modules: [q_proj]}")
    assert is_memory_known(known, *FOLDERS)
    lora = known.student.lora.model_copy(update={"target_modules": wanted})
    student = known.student.model_copy(update={"lora": lora})
    assert not is_memory_known(known.model_copy(update={"student": student}), *FOLDERS)


def test_weights_that_are_stored_twice_count_once(tmp_path):
    shutil.copytree(PAIR / "student", tmp_path / "model")
    whole = count_elements(tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    save_file(weights, tmp_path / "model/consolidated.safetensors")
    assert count_elements(tmp_path / "model") == whole
    config_file = tmp_path / "model/config.json"
    values = json.loads(config_file.read_text())
    assert values["tie_word_embeddings"] is True
    head = weights["model.embed_tokens.weight"].clone()
    save_file({**weights, "lm_head.weight": head}, tmp_path / "model/model.safetensors")
    assert count_elements(tmp_path / "model") == whole
    config_file.write_text(json.dumps({**values, "tie_word_embeddings": False}))
    assert count_elements(tmp_path / "model") == whole + head.numel()


def test_a_teacher_of_few_bits_takes_no_more_than_its_file(tmp_path):
    folder = tmp_path / "four-bits"
    folder.mkdir()
    packed = torch.zeros(1000, 1, dtype=torch.uint8)  # two weights in each
    scales = torch.zeros(16, dtype=torch.bfloat16)
    save_file({"packed": packed, "scales": scales}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"dtype": "bfloat16", "model_type": "llama"}')
    cfg = parsed()
    alone = least_bytes(cfg, FOLDERS[0], [])
    assert least_bytes(cfg, FOLDERS[0], [folder]) - alone == 1000 + 16 * 2


def parsed(*overrides: str):
    models = {
        "student": {"model": str(PAIR / "student")},
        "teacher": {"model": str(PAIR / "teacher")},
    }
    return config.parse(run_yaml() | models, list(overrides))


def test_a_run_that_cannot_fit_is_refused_with_the_first_mistakes(tmp_path, monkeypatch):
    make_workspace(tmp_path)
    monkeypatch.setattr(memory_bound, "free_host_bytes", lambda: 10_000)
    monkeypatch.setattr(memory_bound, "may_have_gpu", lambda: False)
    outcome = type_command(tmp_path, "train", "run.yaml", "eval=[{path: none.jsonl}]")
    assert (outcome.code, outcome.changed) == (2, ())
    first = outcome.text.partition("Looking for more")[0]
    assert "Not enough memory: weights, gradients and optimizer moments take at least" in first
    assert "none.jsonl" in first


def test_the_bound_needs_neither_torch_nor_transformers():
    code = "import sys, opd.setup.memory_bound; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
