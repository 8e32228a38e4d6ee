"""What a run asks of the disk: one estimate, for `opd check` and for the start of `opd train`."""

from __future__ import annotations

import pytest

import opd
from opd import config
from opd.commands.check.candidates import load_candidate
from opd.commands.check.timing import run_cost
from opd.demo.run_config import demo_config
from opd.recipes.check.cost import StepTime
from opd.setup.disk_estimate import bytes_needed, checkpoint_bytes

SECTIONS = {"full": None, "lora": {"rank": 2}}


def small_run(folder, lora):
    data = demo_config(folder)
    data["student"]["lora"] = lora
    data["train"] |= {"steps": 1, "prompts_per_step": 2}
    return config.parse(data | {"eval": []})


@pytest.mark.parametrize("lora", SECTIONS.values(), ids=SECTIONS)
def test_a_checkpoint_is_as_large_as_estimated(tmp_path, lora):
    """Weights that are trained and two moments of each: the base of a LoRA is not in it."""
    cfg = small_run(tmp_path / "run", lora)
    who = load_candidate(cfg, "teacher", None, tmp_path)
    opd.train(cfg, style="quiet")
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    actual = sum(p.stat().st_size for p in folder.iterdir())
    headers = 60_000  # names and offsets of tensors, state.json, manifest
    assert 0 <= actual - checkpoint_bytes(who.pair.student) < headers


@pytest.mark.parametrize("lora", SECTIONS.values(), ids=SECTIONS)
def test_a_check_predicts_what_the_run_will_ask_for(tmp_path, lora):
    cfg = small_run(tmp_path / "run", lora)
    who = load_candidate(cfg, "teacher", None, tmp_path)
    predicted = run_cost(who, StepTime(1.0, 1.0, 1.0, tokens=8.0, fraction=1.0), [])
    assert predicted.disk == bytes_needed(cfg, who.pair.student, who.pair.teacher)
