"""Alarms that a run asks for and can never be given are said, each with its reason."""

from __future__ import annotations

from typing import get_args

import pytest

from opd.config import AlarmName, Run
from opd.demo.run_config import demo_config
from opd.setup.alarm_notes import notes_of_alarms

HELD_OUT = {"path": "held.jsonl"}
HINT = {"from": "student", "prompt": "{prompt} {answer}"}


def notes(tmp_path, *, graded=True, **changes) -> list[str]:
    """What is said of a run of the demo pair with changed groups of keys."""
    data = demo_config(tmp_path)
    for group, value in changes.items():
        merged = isinstance(value, dict) and "from" not in value
        data[group] = data.get(group, {}) | value if merged else value
    return list(notes_of_alarms(Run.model_validate(data), graded=graded))


@pytest.mark.parametrize("name", get_args(AlarmName))
def test_every_alarm_can_be_given_in_some_run(tmp_path, name):
    """And is said to be out of reach in a run that has none of what it needs."""
    rules = {"alarms": {"rules": {name: {"action": "warn"}}}}
    hints = name in ("hint-leaking", "responses-alike")
    rich = (
        rules
        | {"eval": [HELD_OUT, HELD_OUT | {"name": "other"}]}
        | ({"teacher": HINT} if hints else {})
    )
    if name == "stale-rollouts":
        rich |= {"rollout": {"ahead": 1}}
    assert notes(tmp_path, **rich) == []
    poor = rules | {"eval": [], "train": {"steps": 3}, "diagnostics": {"positions": 0}}
    said = notes(tmp_path, graded=False, **poor)
    assert any(line.startswith(f"alarms.rules.{name} is never given: ") for line in said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eval": [], "graded": False}, "Nothing measures accuracy"),
        ({"diagnostics": {"positions": 0}}, "diagnostics.positions=0 measures nothing"),
        ({"eval": [], "alarms": {"action": "stop"}}, "keeps the student of the last step"),
        ({"alarms": {"rules": {"forgetting": {}}}, "eval": [HELD_OUT]}, "and eval has 1"),
        ({"alarms": {"rules": {"drift": {}}}, "train": {"steps": 7}}, "needs 8 (train.steps=7)"),
        (
            {"alarms": {"rules": {"drift": {"action": "act"}}}},
            "alarms.rules.drift.action=act does what warn does",
        ),
        (  # a cold start alone would help, and coldstart.when=alarm is not set
            {"alarms": {"rules": {"entropy-gap-open": {"action": "act"}}}},
            "alarms.rules.entropy-gap-open.action=act does what warn does",
        ),
        (
            {
                "alarms": {"rules": {"drift": {}}},
                "teacher": None,
                "loss": {"terms": {"outcome_weight": 1}},
            },
            "never given: teacher is null",
        ),
    ],
)
def test_what_is_said(tmp_path, changes, said):
    (line,) = notes(tmp_path, **changes)
    assert said in line


def test_alarms_that_are_off_need_nothing(tmp_path):
    off = {"alarms": {"action": "off"}, "eval": [], "diagnostics": {"positions": 0}}
    assert notes(tmp_path, graded=False, **off) == []
    rule = {"alarms": {"rules": {"forgetting": {"action": "off"}}}}
    assert notes(tmp_path, **rule) == []
