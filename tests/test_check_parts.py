"""Half of a short run, then all of it, is made by its check, where the time allows it."""

from __future__ import annotations

import json
import math
from copy import copy
from dataclasses import replace

import pytest

import opd
from opd.commands.check import gather, rounds
from opd.commands.check.gather import USED, Gathering
from opd.commands.check.pilot import PilotResult, make_pilot
from opd.commands.check.rounds import Budget, count_trained_on, probe_prompts
from opd.commands.check.watch import OutOfTime
from opd.core.stats import Estimate
from opd.recipes.check.cost import StepTime
from opd.recipes.check.pilot import Pilot
from opd.training.throwaway import throwaway
from support.checks import checked, demo_run, gathering


def made(steps, parts=0):
    """A pilot of so many steps of a second, and parts of the run after it."""
    time = StepTime(0.5, 0.2, 0.3, 64, 1.0)
    known = {"pilot_steps": 4.0, "pilot_path": 0.05, "pilot_kl_drop": 0.2, "pilot_change": 0.01}
    moment = {name: Estimate(value, value, value, 16) for name, value in known.items()}
    return PilotResult(
        moments=[moment],
        times=[time] * steps,
        measuring=1.0,
        resampling=2.0,
        parts=[{}] * parts,
    )


REFUSED = {"part_steps": 40.0, "part_refused": 3 / 40}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A check of a run of 80 steps, after a round of 8 prompts."""
    each = gathering(tmp_path_factory.mktemp("check"), Budget(300.0))
    each.probe.add(8)
    return each


@pytest.fixture
def short_run(probed, monkeypatch):
    """What it goes on to, by the seconds left."""
    each = copy(probed)
    each.probe, each.watch = copy(probed.probe), copy(probed.watch)
    monkeypatch.setattr(each, "_settled", lambda index, features=None: None)

    def ask(result, seconds):
        each.watch.allow(each.watch.seconds + seconds + 0.5)
        each.pilots = {0: result}
        return each._next_part(0, result)

    return each, ask


def test_half_of_the_run_is_made_where_there_is_time(short_run):
    _, ask = short_run
    assert ask(made(4), 300.0) == 40
    assert ask(made(4), (3.0 + 36) / USED) == 40
    assert ask(made(4), (3.0 + 30) / USED) == 34  # as far as there is time ...
    assert ask(made(4), (3.0 + 27) / USED) == 0  # ... if that is nearly half
    assert ask(made(1), 300.0) == 0  # after the pilot


def test_then_all_of_it(short_run):
    _, ask = short_run
    assert ask(made(40, parts=1), 300.0) == 80
    assert ask(made(40, parts=1), (3.0 + 40) / USED) == 80
    assert ask(made(40, parts=1), (3.0 + 25) / USED) == 65  # as far as there is time ...
    assert ask(made(40, parts=1), (3.0 + 18) / USED) == 0  # ... if that is nearly all
    assert ask(made(80, parts=2), 300.0) == 0


def test_the_rest_is_left_out_where_the_verdict_is_settled_and_the_forecast_exact(
    short_run, monkeypatch
):
    each, ask = short_run
    monkeypatch.setattr(each, "_settled", lambda index, features=None: "go")
    assert ask(made(40, parts=1), 300.0) == 80
    monkeypatch.setattr(gather, "NARROW", 1.0)
    assert ask(made(40, parts=1), 300.0) == 0
    assert ask(made(4), 300.0) == 40


def test_the_rest_is_left_out_where_too_many_steps_were_refused(short_run):
    _, ask = short_run
    broken = made(40, parts=1)
    broken.parts = [{name: Estimate(v, v, v, 8) for name, v in REFUSED.items()}]
    assert ask(broken, 300.0) == 0


def test_a_pilot_that_is_half_of_the_run_is_followed_by_all_of_it(short_run):
    each, ask = short_run
    cfg = each.candidates[0].cfg
    train = cfg.train.model_copy(update={"steps": 6})
    each.candidates = [replace(each.candidates[0], cfg=cfg.model_copy(update={"train": train}))]
    assert ask(made(4), 300.0) == 6


def test_prompts_that_the_copy_had_trained_on_are_counted_and_said(short_run):
    each, _ = short_run
    cfg, training = each.candidates[0].cfg, each.training
    probe = probe_prompts(training, cfg, 80)
    size, count = cfg.train.prompts_per_step, len(training.prompts)
    assert count_trained_on(probe[:8], training, cfg, 0) == 0
    assert count_trained_on(probe, training, cfg, 3) == 3 * size
    assert count_trained_on(probe[-size:], training, cfg, 1) == size  # the first step's come last
    each.probe.limitations = []
    each._note_trained_on(4)
    assert each.probe.limitations == []
    each._note_trained_on(math.ceil(count / size))  # every prompt of the file, once
    each._note_trained_on(math.ceil(count / size))  # of another teacher
    (text,) = each.probe.limitations
    assert "Of the 8 prompts" in text
    assert "8 had been trained on" in text


def test_steps_on_the_copy_are_the_steps_of_the_run(probed, tmp_path):
    """Prompts, random numbers and rates: docs/check.md says so of forecasts after a whole run."""
    candidate = probed.candidates[0]
    with throwaway(candidate.pair.student):
        pilot = make_pilot(candidate, probed.training, tmp_path)
        for _ in range(3):
            pilot.step()
    cfg = demo_run(tmp_path, train={"steps": 3})
    assert cfg.optim == candidate.cfg.optim
    opd.train(cfg)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert pilot.losses == [row["train/loss"] for row in rows if "train/loss" in row]


def test_without_a_limit_of_time_no_part_is_made(short_run):
    each, _ = short_run
    each.watch.deadline = math.inf  # a budget of tokens
    assert each._next_part(0, made(4)) == 0


def test_other_teachers_have_their_share_of_the_time(short_run):
    each, ask = short_run
    each.candidates = each.candidates * 2
    each.probe.teachers = each.probe.teachers * 2
    assert ask(made(4), 2 * (3.0 + 36) / USED + 1) == 40
    assert ask(made(4), 2 * (3.0 + 27) / USED) == 0


LEFT_OUT = ("level", "worse", "refused", "few")


@pytest.mark.parametrize("rule", ["recovers", "too little", "falls", "undecided", *LEFT_OUT])
def test_the_part_is_left_out_where_it_cannot_matter(short_run, monkeypatch, rule):
    each, ask = short_run
    monkeypatch.setattr(each, "_settled", lambda index, features=None: "don't")
    monkeypatch.setattr(gather, "decisive_rule", lambda forecast, features: rule)
    assert ask(made(4), 300.0) == (0 if rule in LEFT_OUT else 40)


def test_without_a_change_of_accuracy_to_predict_no_part_is_made(short_run):
    """Of a run without answers, say, whose verdict it could not change."""
    _, ask = short_run
    blind = made(4)
    blind.moments = []
    assert ask(blind, 300.0) == 0


def test_a_warm_up_as_long_as_the_run_leaves_too_little_of_it_in_nearly_half(short_run):
    each, ask = short_run
    slow = replace(each.settings(0), warmup=80)
    each.settings = lambda index: slow
    assert ask(made(4), 300.0) == 40
    assert ask(made(4), (3.0 + 30) / USED) == 0  # .18 of the rates


def test_all_of_a_short_run_is_made_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 8)
    monkeypatch.setattr(Gathering, "_settled", lambda self, index, features=None: None)
    result = checked(tmp_path, None, train={"steps": 12})
    features = result.best.features
    assert features["part_steps"].value == 12
    assert set(result.best.forecast.views) == {"distance", "pilot", "part"}
    assert any("after 12 steps, 100% of the run" in r.evidence for r in result.best.reasons)
    assert any(r.text.startswith("The run's steps, all made on") for r in result.best.reasons)


def test_time_that_ends_within_the_part_leaves_what_the_pilot_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 8)
    monkeypatch.setattr(Gathering, "_settled", lambda self, index, features=None: None)
    step = Pilot.step

    def late(self, rate=None):
        if self.steps == 6:
            raise OutOfTime("the run's own steps")
        return step(self, rate)

    monkeypatch.setattr(Pilot, "step", late)
    result = checked(tmp_path, None, train={"steps": 24})
    features = result.best.features
    assert features["pilot_steps"].value == 4
    assert not any(name.startswith(("part_", "stretch_")) for name in features)
    assert set(result.best.forecast.views) == {"distance", "pilot"}
    assert any("ended by the budget" in text for text in result.limitations)
