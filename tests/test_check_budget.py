"""The budget of a check on hardware of any speed: planned, kept, interrupted, reported."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from opd.commands.check import gather, judging, pilot, rounds
from opd.commands.check.candidates import load_candidate
from opd.commands.check.gather import SHORT
from opd.commands.check.judging import judge_candidate
from opd.commands.check.output import to_record
from opd.commands.check.rounds import Budget
from opd.commands.check.speed import ModelSpeed, Speed, measure_speed
from opd.commands.check.watch import OutOfTime, Watch
from opd.errors import UserError
from opd.recipes.check.probe import StudentSide
from support.checks import checked, demo_run, gathering
from support.everyday import everyday


class Clock:
    """Time that passes only where a layer of a model is run: the speed of a machine, given."""

    def __init__(self, seconds_per_layer, per_token=0.0):
        self.now, self.seconds, self.per_token = 1000.0, seconds_per_layer, per_token

    def __call__(self):
        return self.now

    def run_layer(self, module, arguments):
        self.now += self.seconds + self.per_token * arguments[0].shape[0] * arguments[0].shape[1]


@pytest.fixture
def slow(monkeypatch):
    """Make every layer of every model take so long."""

    def install(seconds_per_layer, per_token=0.0):
        clock = Clock(seconds_per_layer, per_token)
        original = gather.Gathering.run

        def run(self):
            models = [lm for c in self.candidates for lm in (c.pair.student, c.pair.teacher)]
            handles = [
                layer.register_forward_pre_hook(clock.run_layer)
                for lm in models
                for layer in lm.causal.base_model.layers
            ]
            try:
                original(self)
            finally:
                for handle in handles:
                    handle.remove()

        monkeypatch.setattr(gather.Gathering, "run", run)
        monkeypatch.setattr(time, "monotonic", clock)
        for module in (pilot,):
            monkeypatch.setattr(module, "monotonic", clock)
        return clock

    return install


@pytest.mark.parametrize("seconds_per_layer", everyday([1e-3, 0.03, 0.2, 2.0], 0, 2))
def test_the_budget_is_kept_at_any_speed(tmp_path, slow, monkeypatch, seconds_per_layer):
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 24)
    slow(seconds_per_layer)
    result = checked(tmp_path, 120.0, train={"steps": 24})
    assert result.seconds <= 120 * 1.02
    assert result.best.verdict in ("go", "don't", "go with changes", "not known")
    if result.student is None:  # a machine that has not enough time for a single prompt
        assert result.best.verdict == "not known"
        assert "--budget" in result.best.advice[0].text
    elif seconds_per_layer <= 0.03:
        assert len(result.student.prompts) == 24
        assert "pilot_steps" in result.best.features


def test_time_left_by_the_probe_goes_to_the_pilot_and_a_short_one_is_said(tmp_path, slow):
    slow(0.0, per_token=3e-3)
    result = checked(tmp_path, 120.0)
    assert 120 * 0.3 < result.seconds <= 120 * 1.02
    text = " ".join(result.limitations)
    assert ("pilot_steps" in result.best.features) != ("no time for a pilot" in text)


@pytest.mark.slow
def test_progress_is_told_all_along(tmp_path, slow, monkeypatch):
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 24)
    slow(0.05)
    lines = []
    result = checked(tmp_path, 300.0, lines)
    assert len(lines) >= result.seconds / 25
    assert any("of 300 s: probe: prompts" in line for line in lines)


def test_ctrl_c_gives_the_verdict_so_far_and_the_student_back(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 16)
    seen = []
    original = pilot.PilotMeasurer.measure

    def interrupt(self):
        if len(self.pilot.losses) == 2:
            raise KeyboardInterrupt
        seen.append({n: p.detach().clone() for n, p in self.model.lm.parameters().items()})
        return original(self)

    monkeypatch.setattr(pilot.PilotMeasurer, "measure", interrupt)
    lines = []
    result = checked(tmp_path, None, lines)
    assert result.best.features["pilot_steps"].value == 1  # the moment before stands
    assert "The check was ended by Ctrl-C." in result.limitations
    assert any("Ctrl-C" in line for line in lines)
    student = result.best.candidate.pair.student
    fresh = load_candidate(demo_run(tmp_path), "teacher", None, tmp_path).pair.student
    for name, weight in fresh.parameters().items():
        assert torch.equal(weight, student.parameters()[name])
        assert not torch.equal(weight, seen[0][name]) or weight.ndim < 2


def test_ctrl_c_in_the_second_round_keeps_the_first(tmp_path, monkeypatch):
    original, calls = rounds.probe_student, []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(rounds, "probe_student", interrupt)
    result = checked(tmp_path, None)
    assert len(result.student.prompts) == gather.FIRST_ROUNDS[0]
    assert result.best.forecast.change is not None


def test_ctrl_c_while_a_round_is_added_keeps_both_halves_of_the_probe_alike(tmp_path, monkeypatch):
    """The teachers had the round already, the student had not: no verdict, but an error."""
    each = gathering(tmp_path, Budget(60.0))
    each.probe.add(2)
    with monkeypatch.context() as patch:
        patch.setattr(StudentSide, "__add__", Mock(side_effect=KeyboardInterrupt))
        with each.watch.evidence():
            each.probe.add(2)
    assert each.watch.stopped == "Ctrl-C"
    assert each.features(0)["gap"].n == 2


def test_a_check_that_measured_nothing_does_not_blame_the_answers(tmp_path, monkeypatch):
    """The prompts have answers: 'without answers the change cannot be predicted' stood there."""

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "probe_student", interrupt)
    result = checked(tmp_path, None)
    record = to_record(result)
    assert record["verdict"] == "not known"
    assert record["confidence"] is None
    assert "forecast" not in record["teachers"][0]  # its transfer was 0, as if measured
    assert "--budget" not in json.dumps(record["advice"])  # nor asks for less than it had
    assert result.interrupted


def test_a_budget_that_was_too_short_is_not_asked_for_again(tmp_path):
    """The first few tokens' speed is a rough guess: it asked for --budget 8 after one of 60 s."""
    each = gathering(tmp_path, Budget(60.0))
    each.watch.allow(60.0)
    each.watch.stopped = "the budget of 60 s"
    fast = ModelSpeed(1e-4, 1e-6)
    each.speed = Speed(fast, (fast,), 8, 20.0)
    assert judge_candidate(each, 0).advice[0].text.startswith("To settle it: --budget 120")


def test_no_model_decodes_in_no_time(tmp_path, monkeypatch):
    """Where noise makes the longer of two calls the faster one, the plan had 0 s for decoding."""
    each = gathering(tmp_path, Budget(60.0))
    monkeypatch.setattr("opd.commands.check.speed.time_call", lambda call: (call(), 1.0))
    measured = measure_speed(each.candidates, each.training.prompts)
    assert measured.student.decode == pytest.approx(0.1 / 5)
    assert measured.teachers[0].decode == pytest.approx(0.1 / 5)


@pytest.mark.parametrize("stopped", ["", "Ctrl-C"])
def test_the_comparison_with_the_base_model_is_within_the_budget(tmp_path, monkeypatch, stopped):
    """It began when the time was over, and after Ctrl-C: a third model on every rollout."""
    from opd.demo.run_config import PAIR

    each = gathering(tmp_path, Budget(60.0), check={"origin": str(PAIR / "student")})
    each.probe.add(2)
    each.watch.stopped = stopped
    each.watch.allow(60.0 if stopped else -1.0)
    last = judge_candidate(each, 0).reasons[-1]
    assert last.text.endswith("base model is not known")
    assert last.evidence == "the check was over before they were compared"
    each.watch.stopped = ""
    each.watch.allow(600.0)
    interrupted = Mock(side_effect=KeyboardInterrupt)
    with monkeypatch.context() as patch:
        patch.setattr(judging, "diagnose", interrupted)
        assert judge_candidate(each, 0).reasons[-1] == last
    assert each.watch.stopped == "Ctrl-C"
    each.watch.stopped = ""
    with monkeypatch.context() as patch:  # while the base model is loaded, too
        patch.setattr(judging, "load_lm", interrupted)
        assert judge_candidate(each, 0).reasons[-1] == last
    each.watch.stopped = ""
    assert "KL from the base model" in judge_candidate(each, 0).reasons[-1].evidence


def test_of_several_teachers_the_one_without_a_pilot_is_named(tmp_path, monkeypatch):
    each = gathering(tmp_path, Budget(300.0))
    each.probe.add(2)
    each.candidates = [replace(each.candidates[0], label=name) for name in ("first", "second")]
    each.probe.teachers = each.probe.teachers * 2
    monkeypatch.setattr(each, "_run_pilot", lambda index: None)
    monkeypatch.setattr(each, "_seconds_missing", lambda index: 5.0 if index else -1.0)
    each.watch.allow(300.0)
    each._run_pilots()
    (text,) = each.probe.limitations
    assert text.startswith("There was no time for a pilot of second, so its forecast knows")


def test_the_default_budget_is_two_minutes_or_a_twentieth_of_the_run(tmp_path):
    fast, slow = ModelSpeed(1e-4, 1e-6), ModelSpeed(1.0, 1e-3)
    for speed, expected in ((fast, SHORT), (slow, None)):
        each = gathering(tmp_path, Budget())
        both = Speed(speed, (speed,), 8, 20.0)
        each._plan(both)
        run = each.candidates[0].cfg.train.steps * both.step(each.candidates[0].cfg)
        assert each.watch.allowed == pytest.approx(expected or 0.05 * run)
        third = gathering(tmp_path, Budget(part=1 / 3))  # of three teachers: 15 % of the run
        third._plan(both)
        assert third.watch.allowed == pytest.approx(max(SHORT, 0.05 * run / 3))
    given = gathering(tmp_path, Budget(33.0))
    given._plan(Speed(fast, (fast,), 8, 20.0))
    assert given.watch.allowed == pytest.approx(33.0)


def test_the_default_budget_follows_the_length_of_the_first_rollouts(tmp_path):
    """Half of rollout.max_new_tokens was assumed: of short rollouts it took 40 % of the run."""
    each = gathering(tmp_path, Budget())
    slow = ModelSpeed(1.0, 1e-3)
    each.speed = Speed(slow, (slow,), 8, 512.0)
    each._plan(each.speed)
    assumed, cfg = each.watch.allowed, each.candidates[0].cfg
    each._first_round, each.probe.prompts = (lambda: 2), each.probe.prompts[:2]
    each._add_rounds(1.0)
    lengths = [len(rollout) for rollout in each.probe.student.rollouts]
    assert each.speed.length == pytest.approx(sum(lengths) / len(lengths))
    run = cfg.train.steps * each.speed.step(cfg)
    assert each.watch.allowed == pytest.approx(0.05 * run)
    assert each.watch.allowed < assumed / 4
    given = gathering(tmp_path, Budget(33.0))
    given.speed = Speed(slow, (slow,), 8, 512.0)
    given._plan(given.speed)
    given._first_round, given.probe.prompts = (lambda: 1), given.probe.prompts[:1]
    given._add_rounds(1.0)
    assert given.watch.allowed == pytest.approx(33.0)


def test_a_slow_pair_is_asked_for_less(tmp_path):
    each = gathering(tmp_path, Budget(100.0))
    slow = ModelSpeed(0.5, 1e-2)
    each._plan(Speed(slow, (slow,), 8, 20.0))
    config = each.probe.config
    assert (config.n, config.m, config.greedy, config.continuations) == (2, 1, False, False)
    assert config.tokens_per_batch <= 500


def test_a_settled_no_go_needs_no_pilot(tmp_path, monkeypatch):
    from opd.demo.run_config import PAIR

    monkeypatch.setattr(rounds, "MAX_PROMPTS", 64)
    swapped = {
        "student": {"model": str(PAIR / "teacher")},
        "teacher": {"model": str(PAIR / "student")},
    }
    result = checked(tmp_path, None, **swapped)
    assert result.best.verdict == "don't"
    assert "pilot_steps" not in result.best.features


@pytest.mark.parametrize("steps", [1, 3])
def test_a_pilot_is_no_longer_than_the_run(tmp_path, monkeypatch, steps):
    """Of a run of one step it made 4 and 4 more: '2 steps, 200.0% of the run'."""
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 8)
    result = checked(tmp_path, None, train={"steps": steps})
    features = result.best.features
    assert features["pilot_steps"].value <= steps
    assert features["pilot_path"].value <= 1
    assert "stretch_path" not in features  # there is nothing beyond it


def test_the_deadline_holds_while_a_server_works():
    lines, never = [], threading.Event()
    watch = Watch(lines.append, heartbeat=0.0)
    watch.stage("probe")
    assert watch.during(lambda: 7) == 7
    with pytest.raises(UserError, match="refused"):
        watch.during(Mock(side_effect=UserError("refused")))
    lines.clear()
    watch.allow(watch.seconds + 0.5)
    with pytest.raises(OutOfTime):
        watch.during(lambda: never.wait(30))
    assert watch.seconds < 10
    assert lines
    assert all(line.endswith("probe") for line in lines)
    never.set()


def test_the_deadline_holds_inside_a_forward_pass(make_lm):
    lm = make_lm(0)
    watch, passed = Watch(lambda line: None), []
    layers = next(m for m in lm.causal.base_model.modules() if isinstance(m, nn.ModuleList))
    layers[-1].register_forward_pre_hook(lambda *_: passed.append(1))
    ids = torch.zeros(1, 4, dtype=torch.long)
    with watch.attached([lm]):
        lm.hidden(ids)
        watch.allow(-1.0)
        with watch.evidence():
            lm.hidden(ids)
        assert watch.stopped == "the budget of -1 s"
        with pytest.raises(OutOfTime):
            lm.hidden(ids)
    lm.hidden(ids)  # no longer watched
    assert len(passed) == 2


def test_a_check_without_a_compatible_teacher_takes_no_time(tmp_path):
    from opd.demo.run_config import PAIR

    result = checked(tmp_path, 5.0, teacher={"model": str(PAIR / "student")})
    assert result.best.verdict == "don't"


def test_prompts_of_a_longer_pilot_come_last_too(tmp_path):
    """Those of its last four steps, at a raised rate, were probed after it had trained on them."""
    each = gathering(tmp_path, Budget(), train={"steps": 400})
    cfg = each.candidates[0].cfg
    size = gather.pilot_size(cfg, each.budget)
    assert (size.steps, size.stretch) == (8, 4)
    used = set()
    for step in range(12):
        batch = each.training.batch(
            step, cfg.train.prompts_per_step, seed=cfg.train.seed, shuffle=cfg.prompts.shuffle
        )
        used |= {prompt.index for prompt in batch}
    last = {prompt.index for prompt in each.probe.prompts[-len(used) :]}
    assert last == used


def test_a_cold_start_that_is_not_forecast_is_said_to_be_left_out(tmp_path):
    """The same no-go before and after the advised cold start, and not a word about it."""
    (text,) = gathering(tmp_path, Budget(), coldstart={"lr": 1e-3}).probe.limitations
    assert text.startswith("The run begins with a cold start, which is not part of this forecast")
    assert not gathering(tmp_path, Budget()).probe.limitations
