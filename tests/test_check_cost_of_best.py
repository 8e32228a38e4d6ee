"""A check of several teachers: its plan is of the run with the best of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import opd
from opd import config
from opd.commands.check import gather
from opd.commands.check.gather import Gathering
from opd.commands.check.rounds import Budget
from opd.commands.check.run import _at_final_length
from opd.commands.check.speed import ModelSpeed, Speed, one_teacher
from opd.commands.check.watch import Watch
from opd.demo.run_config import demo_config
from opd.errors import UserError
from opd.recipes.check.cost import RunCost, StepTime
from support.check_features import MODEL, RUN, estimate, make_features


def candidate(name):
    cfg = SimpleNamespace(rollout=SimpleNamespace(engine="hf"), eval=[])
    return SimpleNamespace(label=name, cfg=cfg, pair=SimpleNamespace(teacher=name))


def test_the_cost_is_that_of_the_best_teacher(monkeypatch):
    """It was that of the first one in the list, under the name of the best."""
    gathering = Gathering.__new__(Gathering)
    gathering.candidates = [candidate("worse"), candidate("better")]
    gathering.model, gathering.budget, gathering.watch = MODEL, Budget(), Watch(print)
    gathering.probe = SimpleNamespace(sides=[None, None])
    step = StepTime(1.0, 1.0, 1.0, 8.0, 1.0)
    gathering.pilots = {i: SimpleNamespace(times=[step]) for i in range(2)}
    numbers = [make_features(0.2, 0.21, 0.1), make_features(0.2, 0.8, 0.1)]
    monkeypatch.setattr(Gathering, "features", lambda self, i: numbers[i])
    monkeypatch.setattr(Gathering, "settings", lambda self, i: RUN)
    monkeypatch.setattr(gather.timing, "time_evaluations", lambda *args: [])
    monkeypatch.setattr(gather.timing, "run_cost", lambda who, *args: who.label)
    speeds = tuple(ModelSpeed(x, x) for x in (1.0, 2.0))
    speed = Speed(ModelSpeed(0.5, 0.5), speeds, 4, 8.0)
    gathering.measure_cost(speed)
    assert gathering.cost == "better"
    assert one_teacher(speed, gathering.candidates, 1).teachers == speeds[1:]


@pytest.mark.parametrize(("limit", "factor"), [(64, 1.25), (30, 1.25), (20, 1.0)])
def test_rollouts_never_get_longer_than_their_limit(limit, factor):
    """Answers of a held-out set may be longer than rollouts can be."""
    cost = RunCost({}, {}, 0, 0, 100.0, 10, 2.0, 0.0, 0.0, 0)
    features = {"student_length": estimate(20.0), "teacher_length": estimate(30.0)}
    assert _at_final_length(cost, features, limit).tokens == pytest.approx(100 * factor)


def test_the_library_says_that_it_checks_one_teacher(tmp_path):
    """It said that there was none."""
    data = demo_config(tmp_path / "run")
    teachers = {"a": data["teacher"], "b": data["teacher"]}
    cfg = config.parse({k: v for k, v in data.items() if k != "teacher"} | {"teachers": teachers})
    with pytest.raises(UserError, match="looks at one teacher, and teachers has a, b"):
        opd.check(cfg)
