"""The pilot and everything measured with it: the student comes back, nothing depends on chance."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from opd import config
from opd.commands.check import pilot as pilot_module
from opd.commands.check.candidates import load_candidate
from opd.commands.check.measure import Measurement, measure_pair
from opd.commands.check.pilot import PilotSize, run_pilot
from opd.commands.check.rounds import make_probe_config, probe_prompts
from opd.data.graders import make_grader
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.recipes.check import features, pilot_features
from opd.recipes.check.probe import ProbeModel, probe_student, probe_teacher
from opd.run.console import Console
from opd.setup.prompts import load_training_prompts
from opd.training.throwaway import throwaway
from support.runs import short_demo

LORA = {"rank": 4, "alpha": 8.0}


def demo_run(folder, **changes):
    data = short_demo(folder / "run")
    for section, values in changes.items():
        data[section] = data.get(section, {}) | values
    return config.parse(data)


def states(lm):
    return {n: t.detach().clone() for n, t in lm.model.state_dict().items()}


def random_states():
    return torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def small(cfg, folder, **sizes):
    (folder / "scratch").mkdir(exist_ok=True)
    scratch = folder / "scratch" / str(len(list((folder / "scratch").iterdir())))
    scratch.mkdir()
    defaults = {"prompts": 8, "size": PilotSize(2, 1)}
    return measure_pair(cfg, scratch, **(defaults | sizes))


@pytest.mark.parametrize(
    "changes", [{}, {"student": {"model": str(PAIR / "student"), "lora": LORA}}]
)
def test_a_pilot_moves_the_student_and_puts_it_back_bit_for_bit(tmp_path, changes, monkeypatch):
    cfg = demo_run(tmp_path, **changes)
    candidate = load_candidate(cfg, "teacher", None, tmp_path)
    cfg, pair = candidate.cfg, candidate.pair
    training = load_training_prompts(cfg, pair, Console("quiet"))
    before, randomness = states(pair.student), random_states()
    inside = []
    original = pilot_module.PilotMeasurer.measure

    def spy(self):
        inside.append(any(not torch.equal(t, before[n]) for n, t in states(pair.student).items()))
        return original(self)

    monkeypatch.setattr(pilot_module.PilotMeasurer, "measure", spy)
    with make_grader("exact", [p.answer for p in training.prompts]) as grader:
        probe = make_probe_config(cfg, pair, grader)
        student = ProbeModel(pair.student, pair.stop)
        ours = probe_student(student, training.prompts[:6], probe)
        theirs = probe_teacher(ProbeModel(pair.teacher, pair.teacher_stop), student, ours, probe)
        size = PilotSize(steps=2, stretch=1)
        result = run_pilot(candidate, training, tmp_path, (ours, theirs), probe, size)
    assert inside == [True, True, True]
    after = states(pair.student)
    assert all(torch.equal(after[n], t) for n, t in before.items())
    assert not pair.student.model.training
    assert all(p.grad is None for p in pair.student.parameters().values())
    for a, b in zip(randomness[:2], random_states()[:2], strict=True):
        assert np.array_equal(a, b)
    assert randomness[2] == random_states()[2]
    assert len(result.moments) == 2
    assert {"stretch_path", "stretch_resampled"} <= result.stretch.keys()


def test_the_student_comes_back_when_the_pilot_fails(tmp_path):
    pair = load_candidate(demo_run(tmp_path), "teacher", None, tmp_path).pair
    before = states(pair.student)

    def fail():
        with throwaway(pair.student):
            for p in pair.student.parameters().values():
                p.data.zero_()
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert all(torch.equal(t, before[n]) for n, t in states(pair.student).items())


@pytest.mark.slow
def test_measuring_is_deterministic_and_survives_json(tmp_path):
    cfg = demo_run(tmp_path)
    first, second = (small(cfg, tmp_path) for _ in range(2))
    assert repr(first.features) == repr(second.features)
    assert repr(first.moments) == repr(second.moments)
    again = Measurement.of_record(json.loads(json.dumps(first.record())))
    assert again.run == first.run
    assert again.features.keys() == first.features.keys()
    other = small(demo_run(tmp_path, train={"seed": 5}), tmp_path)
    assert other.features["reverse_kl"] != first.features["reverse_kl"]


def test_every_number_is_defined(tmp_path):
    measured = small(demo_run(tmp_path), tmp_path)
    defined = (
        features.DEFINITIONS
        | pilot_features.PILOT_DEFINITIONS
        | pilot_features.STRETCH_DEFINITIONS
        | pilot_features.PART_DEFINITIONS
    )
    parts = small(demo_run(tmp_path), tmp_path, parts=(3,))
    assert set(measured.features) | set(parts.features) == set(defined)
    assert measured.run.steps == 80
    assert measured.features["pilot_path"].value == pytest.approx(2 / 80)


def test_a_pilot_of_the_shipped_pair_moves_towards_its_teacher(tmp_path):
    measured = small(demo_run(tmp_path), tmp_path, prompts=48, size=PilotSize(4, 0))
    numbers = measured.features
    assert numbers["pilot_kl_drop"].low > 0
    assert numbers["pilot_off_gain"].low > 0
    assert numbers["pilot_change"].value > 0
    kl_drops = [moment["pilot_kl_drop"].value for moment in measured.moments]
    assert kl_drops == sorted(kl_drops)
    assert [moment["pilot_steps"].value for moment in measured.moments] == [1, 2, 4]
    assert not any(name.startswith("stretch_") for name in numbers)


def test_parts_of_the_run_go_on_from_its_pilot_in_place_of_the_stretch(tmp_path):
    measured = small(demo_run(tmp_path), tmp_path, parts=(3, 6))
    numbers = measured.features
    assert [part["part_steps"].value for part in measured.parts] == [3, 6]
    assert numbers["part_path"].value == pytest.approx(6 / 80)
    assert numbers["pilot_steps"].value == 2
    assert not any(name.startswith("stretch_") for name in numbers)
    longer = small(demo_run(tmp_path), tmp_path, size=PilotSize(6, 0)).features
    for name in ("kl_drop", "off_gain", "drift", "resampled"):  # the same six steps
        assert numbers[f"part_{name}"] == longer[f"pilot_{name}"]
    again = Measurement.of_record(json.loads(json.dumps(measured.record())))
    assert again.parts == measured.parts


def test_a_rate_of_almost_zero_changes_nothing(tmp_path):
    measured = small(demo_run(tmp_path, optim={"lr": 1e-12}), tmp_path, size=PilotSize(2, 0))
    assert measured.features["pilot_change"].value == pytest.approx(0.0, abs=1e-4)
    assert measured.features["pilot_resampled"].value == 0.0


def test_probe_prompts_are_not_those_of_the_pilots_steps(tmp_path):
    cfg = demo_run(tmp_path)
    candidate = load_candidate(cfg, "teacher", None, tmp_path)
    training = load_training_prompts(cfg, candidate.pair, Console("quiet"))
    ordered = probe_prompts(training, cfg, 2)
    used = {p.index for step in (0, 1) for p in training.batch(
        step, cfg.train.prompts_per_step, seed=cfg.train.seed, shuffle=True)}  # fmt: skip
    assert {p.index for p in ordered[-len(used) :]} == used
    assert len(ordered) == len(training.prompts)
    first = {p.index for p in training.batch(
        0, cfg.train.prompts_per_step, seed=cfg.train.seed, shuffle=True)}  # fmt: skip
    assert {p.index for p in ordered[-len(first) :]} == first
    wide = config.parse(config.dump(cfg), ["loss.k=24"])
    probe = make_probe_config(wide, candidate.pair, None)
    assert (probe.k, probe.recorded) == (16, 24)  # diagnostics of all runs are at 16


def test_an_incompatible_teacher_is_an_error(tmp_path):
    with pytest.raises(UserError, match="same weights"):
        small(demo_run(tmp_path, teacher={"model": str(PAIR / "student")}), tmp_path)
