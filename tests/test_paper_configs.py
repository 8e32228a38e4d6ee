"""Configurations of the paper's runs: every arm parses, and passes `opd check` with stand-ins."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from opd import config
from opd.commands.check import run_check

FOLDER = Path(__file__).parents[1] / "examples" / "paper"
FILES = sorted(FOLDER.glob("*.yaml"))


def load_script():
    """examples/paper/dry_run.py as a module."""
    spec = importlib.util.spec_from_file_location("paper_dry_run", FOLDER / "dry_run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
ARMS = [(file, tuple(arm)) for file in FILES for arm in script.arms(file)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_arm_parses_with_the_papers_settings(file):
    folders = []
    for overrides in script.arms(file):
        cfg = config.load(str(file), overrides)
        assert (cfg.train.prompts_per_step, cfg.rollout.n, cfg.loss.k) == (64, 4, 16)
        assert (cfg.optim.lr, cfg.rollout.temperature, cfg.loss.mode) == (1e-6, 1.0, "reference")
        assert [(e.n, e.temperature, e.top_p) for e in cfg.eval] == [(16, 0.7, 0.95)] * 3
        folders.append(cfg.output.dir)
    assert len(folders) >= 2
    assert len(set(folders)) == len(folders)  # no arm writes over another


def test_the_head_lists_arms_of_its_own_file():
    for file in FILES:
        for line in file.read_text("utf-8").splitlines():
            if line.startswith(script.START):
                assert line.removeprefix(script.START).split()[0] == file.name


def test_an_arm_with_a_cold_start_makes_it_in_one_process_first():
    """Several processes refuse one that is not made yet."""
    starting = [(file, arm) for file, arm in ARMS if config.load(str(file), arm).coldstart]
    assert starting
    for file, arm in starting:
        command = f"#   opd coldstart examples/paper/{file.name} {' '.join(arm)}\n"
        first, _, then = file.read_text("utf-8").partition(command)
        assert then.startswith(f"{script.START}{file.name} {' '.join(arm)} --resume\n"), first


@pytest.mark.slow
@pytest.mark.parametrize(("file", "arm"), ARMS, ids=lambda value: getattr(value, "stem", ""))
def test_check_accepts_every_arm_with_stand_ins(file, arm, tmp_path):
    result = run_check(file, script.stand_ins(file, list(arm), tmp_path), budget=10)
    assert result.best.verdict
