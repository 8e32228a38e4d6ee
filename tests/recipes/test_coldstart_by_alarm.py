"""A cold start that an alarm begins in the middle of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from opd import config
from opd.alarms import RULES, replay
from opd.alarms.conditions import Evidence
from opd.commands.coldstart import run_coldstart
from opd.config import Alarms
from opd.errors import UserError
from opd.recipes.distillation import distill
from opd.reports.read import read_run
from opd.run.jsonl import read_jsonl
from support.coldstart_runs import run_config
from support.everyday import everyday
from support.runs import digest, open_run, run_to_end


def when_alarmed(folder: Path) -> dict:
    data = run_config(folder, when="alarm")
    data["train"] |= {"steps": 7}
    return data | {"alarms": {"action": "act"}}


@pytest.fixture
def loud(monkeypatch):
    """An alarm that any run raises after four steps (found after two, held for two)."""
    rule = next(r for r in RULES if r.name == "overlap-stagnating")
    seen = replace(
        rule, condition=lambda seen, _: Evidence() if len(seen.values("train/loss")) > 2 else None
    )
    monkeypatch.setattr("opd.alarms.rules.RULES", (seen,))  # of a run
    monkeypatch.setattr("opd.alarms.monitor.RULES", (seen,))  # of a replay
    monkeypatch.setattr("opd.alarms.monitor.MIN_WINDOW", 2)


@pytest.mark.usefixtures("loud")
@pytest.mark.parametrize("stops", everyday([["in the phase"], ["at the alarm", "later"]], 0))
def test_an_alarm_begins_a_cold_start_and_training_goes_on_afresh(tmp_path, stops):
    folder = tmp_path / "straight"
    summary = run_to_end(when_alarmed(folder))
    (alarm,) = read_jsonl(folder / "alarms.jsonl")
    assert alarm["action"] == "a cold start begins before the next step"
    record = summary["coldstart"]
    assert (alarm["step"], record["after_step"], record["rounds"]) == (4, 4, 3)
    rows = read_jsonl(folder / "metrics.jsonl")
    trained = [row["step"] for row in rows if "train/loss" in row]
    assert trained == list(range(1, 8))
    inserted = [i for i, row in enumerate(rows) if row.get("phase") == "coldstart"]
    assert {rows[i]["step"] for i in inserted} == {4}
    assert rows[inserted[-1] + 1] == {"step": 4, "phase": "on-policy"}
    # The optimizer of training was begun anew: it has counted the three steps since.
    after = load_file(folder / "checkpoints" / "step-7" / "optimizer.safetensors")
    assert {float(v) for n, v in after.items() if n.startswith("step/")} == {3.0}
    assert not (folder / "coldstart" / "checkpoints").exists()
    # Rules look at the student of today, live and in a replay.
    assert [a.step for a in replay(rows, Alarms(action="act"), 7)] == [4]
    data = read_run(folder)
    assert data.phases == [(0, "on-policy"), (4, "coldstart"), (4, "on-policy")]
    assert data.series("time/step_s").steps.tolist() == list(range(1, 8))
    assert data.total("time/step_s", cold_start=True) > 0
    for stop in stops:
        half = tmp_path / stop.replace(" ", "-")
        interrupted(when_alarmed(half), stop)
        assert run_to_end(when_alarmed(half), resume=True)["coldstart"] == record
        assert digest(half) == digest(folder)


def interrupted(data: dict, when: str) -> None:
    """A run that Ctrl-C stops after step 4 or 5, or after the first round of the cold start."""
    session, completions = open_run(data)
    at = {"at the alarm": 4, "later": 5}.get(when)
    session.console.show_step = lambda now, *rest: session.stop.set() if now == at else None
    if when == "in the phase":
        session.console.print = lambda text: session.stop.set() if "round 1" in text else None
    with pytest.raises(KeyboardInterrupt):
        distill(session, completions)
    session.folder.close()
    phase = Path(data["output"]["dir"]) / "coldstart" / "checkpoints"
    assert phase.exists() == (when == "in the phase")


def test_a_cold_start_that_waits_needs_an_alarm_that_acts(tmp_path):
    data = when_alarmed(tmp_path / "run")
    with pytest.raises(UserError, match=r"alarms\.action=act"):
        config.parse(data | {"alarms": {"action": "warn"}})
    with pytest.raises(UserError, match=r"coldstart\.when=start"):
        run_coldstart(config.parse(data), style="quiet")


@pytest.mark.slow
@pytest.mark.usefixtures("loud")
def test_an_alarm_at_the_last_step_begins_nothing_until_there_are_more(tmp_path):
    data = when_alarmed(tmp_path / "run")
    data["train"]["steps"] = 4
    assert "coldstart" not in run_to_end(data)
    final = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    assert "coldstart" not in run_to_end(data, resume=True)
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == final
    data["train"]["steps"] = 5
    assert run_to_end(data, resume=True)["coldstart"]["after_step"] == 4


@pytest.mark.slow
@pytest.mark.usefixtures("loud")
def test_a_cold_start_that_finds_nothing_to_imitate_leaves_the_run_as_it_was(tmp_path, caplog):
    hopeless = when_alarmed(tmp_path / "hopeless")
    hopeless["coldstart"] |= {"max_new_tokens": 1}
    assert "coldstart" not in run_to_end(hopeless)
    assert "The run goes on without it" in caplog.text
    plain = when_alarmed(tmp_path / "plain")
    run_to_end({key: value for key, value in plain.items() if key != "coldstart"})
    first, second = (digest(tmp_path / name) for name in ("hopeless", "plain"))
    final = "final/model.safetensors"
    assert first[final] == second[final]
    assert first["metrics.jsonl"] == second["metrics.jsonl"]
    assert "coldstart" not in run_to_end(hopeless, resume=True)
