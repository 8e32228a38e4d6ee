"""Alarms of whole runs: on disk, once, and the same after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from opd.alarms import RULES, Alarm, Monitor, Rule, replay
from opd.alarms.conditions import Evidence
from opd.config import Alarms
from opd.core.objective import Objective
from opd.demo.run_config import PAIR
from opd.recipes.distillation import distill
from opd.reports.terminal import render_text
from opd.reports.training_summary import training_summary
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.training.horizon import Horizon
from opd.training.interventions import NO_ACTION, Adjustable, Interventions
from opd.types import Kind
from support.runs import open_run, short_demo

STEPS = 11
# A threshold nobody meets, so that the alarm comes for certain: at step 9, in windows of two.
WATCHFUL = {"rules": {"overlap-stagnating": {"threshold": 1.5}}}


@pytest.fixture(autouse=True)
def short_windows(monkeypatch):
    """Windows of two steps: these runs are too short for four."""
    monkeypatch.setattr("opd.alarms.monitor.MIN_WINDOW", 2)


def run_config(folder: Path, **changes) -> dict:
    """A small run of the demo pair."""
    data = short_demo(folder)
    data["train"] |= {"steps": STEPS, "prompts_per_step": 2}
    data["output"] |= {"save_every": 2, "rollout_sample": 2}
    data["eval"] = [data["eval"][0] | {"limit": 4, "every": 3}]
    data["alarms"] = WATCHFUL
    for section, values in changes.items():
        data[section] = data.get(section, {}) | values
    return data


def run(data: dict, *, resume: bool = False, upto: int | None = None) -> list[dict]:
    """Train, stopping after `upto` steps as Ctrl-C would; returns the lines of alarms.jsonl."""
    session, completions = open_run(data, resume=resume)
    if upto is not None:
        session.console.show_step = lambda now, *rest: session.stop.set() if now == upto else None
    try:
        distill(session, completions)
    except KeyboardInterrupt:
        assert upto is not None
    finally:
        session.folder.close()
    return read_jsonl(Path(data["output"]["dir"]) / "alarms.jsonl")


@pytest.mark.slow
def test_alarms_are_recorded_once_and_survive_an_interruption(tmp_path):
    straight = run(run_config(tmp_path / "straight"))
    assert [line["step"] for line in straight if line["name"] == "overlap-stagnating"] == [9]
    keys = {"step", "name", "message", "evidence", "remedy", "action"}
    assert all(line.keys() == keys for line in straight)
    rows = read_jsonl(tmp_path / "straight" / "metrics.jsonl")
    replayed = replay(rows, Alarms.model_validate(WATCHFUL), STEPS)
    assert [alarm.record() for alarm in replayed] == straight
    for stop in (8, 9):  # before it is raised, and just after
        folder = tmp_path / f"halves-{stop}"
        run(run_config(folder), upto=stop)
        assert run(run_config(folder), resume=True) == straight


@pytest.mark.parametrize("style", ["plain", "json"])
def test_an_alarm_is_said_with_numbers_and_remedy(capsys, style):
    record = {"step": 3, "name": "repetition", "message": "Loops.", "evidence": {"now": 0.25}}
    Console(style).show_alarm(record | {"remedy": "Shorten.", "action": "warn"})
    text = capsys.readouterr().out
    for word in ("repetition", "Loops.", "0.25", "Shorten.", "warn"):
        assert word in text
    if style == "json":
        assert json.loads(text)["alarm"] == "repetition"


def test_off_is_silent(tmp_path):
    assert run(run_config(tmp_path / "run", alarms={"action": "off"})) == []


def made_up(name: str, **evidence: float) -> tuple[Rule, Alarm]:
    rule = next(r for r in RULES if r.name == name)
    return rule, Alarm(5, rule.name, rule.message, evidence, rule.remedy, "act")


def course(**objective) -> Adjustable:
    kinds = frozenset({Kind.SAMPLED, Kind.SUPPORT})
    return Adjustable(Horizon(None, 100), Objective(**objective), kinds)


def test_a_draining_support_is_answered_with_a_tail_bucket_once():
    changed, words = course().act_on(*made_up("support-mass-draining"), 5)
    assert changed.objective.mode == "tail"
    assert "tail" in words
    again, words = changed.act_on(*made_up("support-mass-draining"), 6)
    assert (again, words) == (changed, NO_ACTION)
    assert course().restore(changed.state()) == changed


@pytest.mark.parametrize("support", ["full", "sampled"])
def test_a_loss_without_an_outside_gets_no_tail(support):
    before = course(support=support)
    assert before.act_on(*made_up("support-mass-draining"), 5) == (before, NO_ACTION)


def test_a_teacher_without_normalisers_gets_no_tail():
    before = replace(course(), kinds=frozenset({Kind.SUPPORT}))
    assert before.act_on(*made_up("support-mass-draining"), 5) == (before, NO_ACTION)


def test_a_spike_is_answered_with_a_horizon_that_ends_where_it_begins():
    changed, words = course().act_on(*made_up("late-spike", position=40.0), 5)
    assert changed.horizon.limit(6) == 40
    assert "40" in words
    changed, _ = changed.act_on(*made_up("repetition"), 6)
    assert changed.horizon.limit(7) == 28
    assert course().restore(changed.state()) == changed
    least, words = changed.act_on(*made_up("late-spike", position=3.0), 6)
    assert least.horizon.limit(7) == 16
    assert least.act_on(*made_up("repetition"), 7) == (least, NO_ACTION)


def test_acting_alarms_change_the_run_and_come_back_bit_for_bit(tmp_path, monkeypatch):
    spike = next(r for r in RULES if r.name == "repetition")
    # A condition that any run meets after four steps, so that the answer comes for certain.
    loud = replace(
        spike, condition=lambda seen, _: Evidence() if len(seen.values("train/loss")) > 3 else None
    )
    monkeypatch.setattr("opd.alarms.rules.RULES", (loud,))
    act = {"alarms": {"action": "act"}, "rollout": {"max_new_tokens": 40}}
    straight = run(run_config(tmp_path / "straight", **act))
    assert [(a["step"], a["action"][:26]) for a in straight] == [(5, "rollouts end after 28 toke")]
    metrics = tmp_path / "straight" / "metrics.jsonl"
    limits = [r.get("horizon/limit") for r in read_jsonl(metrics) if "train/loss" in r]
    assert limits == [None] * 5 + [28] * (STEPS - 5)
    for stop in (4, 7):
        folder = tmp_path / f"halves-{stop}"
        run(run_config(folder, **act), upto=stop)
        assert run(run_config(folder, **act), resume=True) == straight
        assert (folder / "metrics.jsonl").read_bytes() == metrics.read_bytes()


def test_only_an_alarm_of_the_last_step_has_stopped_a_resumed_run():
    """One that warned before `alarms.action=stop` was set, or that the run went on after."""
    stop = Alarms.model_validate(WATCHFUL | {"action": "stop"})
    loud = replace(
        next(r for r in RULES if r.name == "repetition"),
        condition=lambda seen, _: Evidence() if len(seen.values("train/loss")) > 3 else None,
    )
    rows = [{"step": step, "train/loss": 1.0} for step in range(1, 9)]
    run = Interventions(Monitor(stop, STEPS, rules=[loud]), course(), None, None, None)
    run.restore({}, rows[:5], 5)
    assert run.stopped_by.step == 5
    run.restore({}, rows, 8)
    assert run.stopped_by is None


@pytest.mark.slow
def test_a_stop_keeps_the_best_student(tmp_path):
    # A rate that ruins the student: it is best before the first step, or soon after.
    stop = {"alarms": {"action": "stop"}, "optim": {"lr": 0.03}}
    data = run_config(tmp_path / "run", **stop)
    data["student"] = data["student"] | {"model": str(PAIR / "teacher")}
    data["teacher"] = {"model": str(PAIR / "student")}
    data["eval"] = [data["eval"][0] | {"limit": 16, "every": 2}]
    alarms = run(data)
    assert alarms[-1]["action"] == "stop"
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["step"] == alarms[-1]["step"] < STEPS
    accuracy = {r["step"]: r["eval/sum/accuracy"] for r in rows if "eval/sum/accuracy" in r}
    best = max(accuracy, key=lambda step: (accuracy[step], -step))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == best
    assert summary["stopped"]["name"] == alarms[0]["name"]
    text = " ".join(render_text(training_summary(summary)))
    assert alarms[0]["name"] in text
    assert f"that of step {best}" in text
    assert summary["sets"]["sum"]["after"]["value"] == accuracy[best] > accuracy[max(accuracy)]
    (kept,) = (tmp_path / "run" / "best").iterdir()
    assert kept.name == f"step-{best}"
    weights = load_file(kept / "student.safetensors")
    final = load_file(tmp_path / "run" / "final" / "model.safetensors")
    shared = weights.keys() & final.keys()
    assert shared
    assert all(torch.equal(weights[n], final[n]) for n in shared)
    # Run again, it is over; with action: warn, it goes on.
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert run(data, resume=True) == alarms
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    run(data | {"alarms": {"action": "warn"}}, resume=True)
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == STEPS
