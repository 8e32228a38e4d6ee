"""Checks of the shipped pair, whole or before anything was measured."""

from __future__ import annotations

from opd import config
from opd.commands.check.candidates import load_candidate
from opd.commands.check.gather import Gathering
from opd.commands.check.rounds import Budget
from opd.commands.check.run import check
from opd.commands.check.watch import Watch
from opd.demo.run_config import demo_config
from opd.run.console import Console
from opd.setup.prompts import load_training_prompts


def demo_run(folder, **changes):
    data = demo_config(folder / "run") | {"eval": []}
    for section, values in changes.items():
        data[section] = data.get(section, {}) | values
    return config.parse(data)


def checked(folder, budget, lines=None, **changes):
    scratch = folder / "scratch"
    scratch.mkdir()
    show = (lambda line: None) if lines is None else lines.append
    return check("run.yaml", [demo_run(folder, **changes)], Budget(budget), scratch, show)


def gathering(tmp_path, budget, **changes):
    candidate = load_candidate(demo_run(tmp_path, **changes), "teacher", None, tmp_path)
    training = load_training_prompts(candidate.cfg, candidate.pair, Console("quiet"))
    return Gathering([candidate], training, budget, Watch(lambda line: None), tmp_path)
