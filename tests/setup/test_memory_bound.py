"""What is said about memory before torch is imported never exceeds what the plan says after."""

from __future__ import annotations

import subprocess
import sys

import pytest

from opd import config
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.setup import memory_bound
from opd.setup.memory_advice import fixed_bytes
from opd.setup.memory_bound import require_memory_for_weights
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
}


def bound(cfg, monkeypatch):
    """The number of bytes below which the run is refused."""
    low, high = 0, 2**40
    while low < high:
        middle = (low + high) // 2
        monkeypatch.setattr(memory_bound, "free_host_bytes", lambda middle=middle: middle)
        try:
            require_memory_for_weights(cfg, PAIR / "student", [PAIR / "teacher"])
            high = middle
        except UserError:
            low = middle + 1
    return low


@pytest.mark.parametrize("name", CHANGES)
def test_the_bound_is_below_the_plan(name, monkeypatch, tmp_path):
    monkeypatch.setattr(memory_bound, "may_have_gpu", lambda: False)
    models = {
        "student": {"model": str(PAIR / "student")},
        "teacher": {"model": str(PAIR / "teacher")},
    }
    cfg = config.parse(run_yaml() | models, list(CHANGES[name]))
    planned = fixed_bytes(plan_memory(cfg, device="cpu"), "cpu")
    assert 0.2 * planned < bound(cfg, monkeypatch) <= planned


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
