"""The warning of bfloat16 on a CPU that emulates it."""

import json
import logging
import shutil

import pytest
import torch

from opd import cli, config
from opd.commands import train as train_command
from opd.commands.check import slow_products as module
from opd.commands.check.candidates import load_candidate
from opd.commands.check.slow_products import bfloat16_ratio, slow_products, warn_of_slow_products
from opd.demo.run_config import PAIR, demo_config


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with overrides, on a CPU as slow as asked."""
    monkeypatch.setattr(module, "default_device", lambda: torch.device("cpu"))

    def make(*overrides, ratio=30.0):
        monkeypatch.setattr(module, "bfloat16_ratio", lambda: ratio)
        return config.parse(demo_config(tmp_path / "run"), overrides)

    return make


def stored_in(dtype, folder):
    shutil.copytree(PAIR / "teacher", folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": dtype}))
    return f"teacher.model={folder}"


@pytest.mark.parametrize(
    ("overrides", "seen", "fix"),
    [
        (["student.precision=bf16_mixed"], "student.precision=bf16_mixed computes", "student."),
        (["student.precision=bfloat16"], "student.precision=bfloat16 computes", "student."),
        (["teacher.dtype=bfloat16"], "teacher.dtype=bfloat16 computes", "teacher.dtype"),
    ],
)
def test_what_computes_in_bfloat16_is_named_with_the_key_to_change(run, overrides, seen, fix):
    message = slow_products(run(*overrides))
    assert message.startswith(seen)
    assert "30 times as long" in message
    assert f"Set {fix}" in message


def test_a_teacher_that_is_stored_in_bfloat16_is_named(run, tmp_path):
    stored = stored_in("bfloat16", tmp_path / "teacher")
    message = slow_products(run(stored, "student.precision=bf16_mixed"))
    assert (
        "student.precision=bf16_mixed and teacher.dtype=auto (stored in bfloat16) compute in"
        in message
    )
    assert "Set student.precision=float32 and teacher.dtype=float32" in message
    assert slow_products(run(stored, "teacher.dtype=float32")) is None


def test_nothing_is_said_of_float32_a_fast_processor_or_a_gpu(run, monkeypatch):
    assert slow_products(run()) is None
    assert slow_products(run("student.precision=bf16_mixed", ratio=1.1)) is None
    monkeypatch.setattr(module, "default_device", lambda: torch.device("cuda"))
    assert slow_products(run("teacher.dtype=bfloat16")) is None


def test_it_is_logged_by_the_first_process_alone(run, monkeypatch, caplog):
    cfg = run("teacher.dtype=bfloat16")
    with caplog.at_level(logging.WARNING):
        monkeypatch.setenv("RANK", "1")
        warn_of_slow_products(cfg)
        assert not caplog.records
        monkeypatch.setenv("RANK", "0")
        warn_of_slow_products(cfg)
    assert "teacher.dtype=float32" in caplog.text


def test_the_ratio_is_measured():
    assert 0.01 < bfloat16_ratio() < 1e4


def test_train_and_check_say_it(run, monkeypatch, caplog, tmp_path):
    cfg = run("teacher.dtype=bfloat16")
    monkeypatch.setattr(train_command, "run_train", lambda cfg, **how: None)
    with caplog.at_level(logging.WARNING):
        cli._train(cfg, False, False, True, False)
    assert "Set teacher.dtype=float32" in caplog.text
    found = load_candidate(cfg, "teacher", None, tmp_path).findings
    (finding,) = [each for each in found if each.topic == "precision"]
    assert finding.level == "warning"
    assert "Set teacher.dtype=float32" in finding.message
