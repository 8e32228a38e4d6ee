"""Advice of `opd check` that is followed: by `--apply`, by `recipe: auto`, by the next check."""

from __future__ import annotations

from unittest.mock import Mock

import yaml

from opd import config
from opd.commands.check import output
from opd.commands.check.candidates import Candidate
from opd.commands.check.judging import cold_start
from opd.commands.check.result import CheckResult, TeacherResult
from opd.demo.run_config import demo_config
from opd.recipes.check.advice import Advice
from opd.recipes.check.reasons import Reason
from opd.reports.check_page import check_document
from opd.reports.terminal import render_text


def test_a_cold_start_that_waits_for_an_alarm_is_begun_with_and_keeps_its_settings(tmp_path):
    """It was given a rate and went on waiting; `--apply` dropped everything else it had."""
    data = demo_config(tmp_path / "run") | {"alarms": {"action": "act"}}
    data["coldstart"] = {"when": "alarm", "mass": 0.9, "lr": 2e-3}
    cfg = config.parse(data)
    pair = Mock()
    pair.student.config.hidden_size = 64
    candidate = Candidate("teacher", cfg, [], pair, teacher_samplers=Mock())
    section = cold_start(candidate)
    assert section == {"coldstart": {"when": "start"}}
    file, out = tmp_path / "run.yaml", tmp_path / "out.yaml"
    file.write_text(yaml.safe_dump(data))
    output.apply_advice(file, (), cfg, [Advice("Begin with a cold start", section)], out)
    applied = config.load(out).coldstart
    assert (applied.when, applied.mass, applied.lr) == ("start", 0.9, 2e-3)


def test_every_teacher_that_is_a_go_with_changes_has_them_named(tmp_path):
    """Of several teachers only the first one's advice was in the record and on the page."""
    cfg = config.parse(demo_config(tmp_path / "run"))
    change = Advice(
        "Set train.steps to 160: predicted change then +30.0 points", {"train.steps": 160}
    )
    teachers = [
        TeacherResult(Candidate("first", cfg, [], None), "go"),
        TeacherResult(
            Candidate("second", cfg, [], None),
            "go with changes",
            reasons=[Reason("What was measured does not decide")],
            advice=[change],
        ),
    ]
    record = output.to_record(CheckResult("run.yaml", teachers, None, None, (), (), 1.0))
    assert record["teachers"][1]["advice"] == [change.record()]
    assert "Set train.steps to 160" in " ".join(
        "".join(render_text(check_document(record))).split()
    )
