"""Alarms of whole runs: on disk, once, and the same after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opd import config
from opd.alarms import replay
from opd.build import build
from opd.config import Alarms
from opd.lab.demo import demo_config
from opd.loop import train
from opd.run.console import Console
from opd.run.records import read_jsonl

STEPS = 11
# A threshold nobody meets, so that the alarm comes for certain: at step 9, in windows of two.
WATCHFUL = {"window": 2, "rules": {"overlap-stagnating": {"threshold": 1.5}}}


def run_config(folder: Path, **changes) -> dict:
    """A small run of the demo pair."""
    data = demo_config(folder)
    data["train"] |= {"steps": STEPS, "prompts_per_step": 2}
    data["output"] |= {"save_every": 2, "rollout_sample": 2}
    data["eval"] = [data["eval"][0] | {"limit": 4, "every": 3}]
    data["alarms"] = WATCHFUL
    for section, values in changes.items():
        data[section] = data.get(section, {}) | values
    return data


def run(data: dict, *, resume: bool = False, upto: int | None = None) -> list[dict]:
    """Train, stopping after `upto` steps as Ctrl-C would; returns the lines of alarms.jsonl."""
    parts = build(config.parse(data), resume=resume, overwrite=False, console=Console("quiet"))
    if upto is not None:
        parts.console.step = lambda now, *rest: parts.stop.set() if now == upto else None
    try:
        train(parts)
    except KeyboardInterrupt:
        assert upto is not None
    finally:
        parts.folder.close()
    return read_jsonl(Path(data["output"]["dir"]) / "alarms.jsonl")


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
    Console(style).alarm(record | {"remedy": "Shorten.", "action": "warn"})
    said = capsys.readouterr().out
    for word in ("repetition", "Loops.", "0.25", "Shorten.", "warn"):
        assert word in said
    if style == "json":
        assert json.loads(said)["alarm"] == "repetition"


def test_off_is_silent(tmp_path):
    assert run(run_config(tmp_path / "run", alarms={"action": "off"})) == []
