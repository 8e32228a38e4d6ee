"""The check of a run that begins with a cold start, whose effect it does not predict."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import yaml

from opd import config
from opd.commands.auto import is_refused
from opd.commands.check import output
from opd.commands.check.candidates import Candidate
from opd.commands.check.judging import cold_student
from opd.commands.check.result import CheckResult, TeacherResult
from opd.demo.run_config import demo_config
from opd.recipes.check.advice import advise, decide
from opd.recipes.check.reasons import NOT_AHEAD, confidence, explain
from opd.recipes.check.settings import begins_cold
from opd.reports.check_page import check_document
from opd.reports.terminal import render_text
from support.check_features import FACTS, MODEL, RUN, estimate, make_features, pilot

COLD = replace(RUN, cold_start=True)
BEFORE = replace(FACTS, cold_start=None, cold_student="run/coldstart/student")
FALLS = make_features(0.5, 0.9, 3.0) | pilot(0.05, -0.3, 0.01)
LITTLE = make_features(0.0, 0.9, 1.9) | pilot(0.15, 0.0, 0.3)
LITTLE |= {"stretch_path": estimate(0.5), "stretch_resampled": estimate(0.02, 0.03)}
SLOW = make_features(0.2, 0.8, 0.1) | pilot(0.1, 0.005, 0.05)
RISES = make_features(0.2, 0.8, 0.1) | pilot(0.05, 0.08, 0.2)
LEVEL = make_features(0.5, 0.51, 0.1, half=0.005)
REFUSED = FALLS | {"pilot_refused": estimate(1.0, 0.0)}


@pytest.mark.parametrize(
    ("features", "plain", "cold"),
    [
        (FALLS, "don't", "not known"),
        (LITTLE, "don't", "not known"),
        (SLOW, "go with changes", "not known"),
        (RISES, "go", "go"),
        (LEVEL, "don't", "don't"),
        (REFUSED, "don't", "don't"),
    ],
)
def test_a_forecast_of_the_run_without_it_is_no_verdict_on_the_run(features, plain, cold):
    """The cold start that the check had advised changed nothing: the same no-go, at once."""
    assert decide(MODEL, features, RUN)[0] == plain
    verdict, _, changes = decide(MODEL, features, COLD)
    assert verdict == cold
    assert not changes  # that make another run than this a go


@pytest.mark.parametrize("features", [FALLS, LITTLE, RISES])
def test_what_is_said_of_the_run_without_the_cold_start_says_so(features):
    verdict, forecast, _ = decide(MODEL, features, COLD)
    reasons = explain(verdict, forecast, features, COLD)
    assert reasons[0].text.startswith("Without the cold start, ")
    assert reasons[0].evidence.startswith("predicted change without the cold start")
    assert not any("run's first steps" in reason.text for reason in reasons)
    assert "without the cold start" in confidence(forecast, features, cold_start=True)
    advice = advise(verdict, forecast, features, [], BEFORE)
    settled = [one.text for one in advice if one.text.startswith("To settle it")]
    assert len(settled) == (verdict == "not known")
    assert all("opd coldstart" in text for text in settled)


def test_a_teacher_that_is_not_ahead_is_a_no_go_with_a_cold_start_too():
    verdict, forecast, _ = decide(MODEL, LEVEL, COLD)
    assert explain(verdict, forecast, LEVEL, COLD)[0].text == NOT_AHEAD


def result_of(tmp_path, features):
    cfg = config.parse(demo_config(tmp_path / "run") | {"coldstart": {}})
    settings = replace(COLD, cold_start=begins_cold(cfg))
    verdict, forecast, _ = decide(MODEL, features, settings)
    one = TeacherResult(
        Candidate("one", cfg, [], None),
        verdict,
        features,
        forecast=forecast,
        reasons=explain(verdict, forecast, features, settings),
    )
    return CheckResult("run.yaml", [one], None, None, (), (), 1.0)


def test_the_recipe_trains_it_unless_the_teacher_is_not_ahead(tmp_path):
    assert not is_refused(result_of(tmp_path, FALLS))
    assert not is_refused(result_of(tmp_path, RISES))
    assert is_refused(result_of(tmp_path, LEVEL))
    assert is_refused(result_of(tmp_path, REFUSED))


def test_the_page_says_whose_forecast_it_shows(tmp_path):
    for features, headline in (
        (FALLS, "Not known"),
        (RISES, "Go, even without the cold start that the run begins with"),
    ):
        record = output.to_record(result_of(tmp_path, features))
        page = " ".join(" ".join(render_text(check_document(record))).split())
        assert headline in page
        assert "predicted change without the cold start" in page
        assert "chance that accuracy rises without the cold start" in page


def test_what_would_settle_it_can_be_typed(tmp_path):
    folder = tmp_path / "my run"
    data = demo_config(folder) | {"coldstart": {}}
    file = tmp_path / "my run.yaml"
    file.write_text(yaml.safe_dump(data))
    cfg = config.load(file)
    student = cold_student(cfg)
    assert student == str(folder / "coldstart" / "student")
    verdict, forecast, _ = decide(MODEL, FALLS, COLD)
    advice = advise(
        verdict, forecast, FALLS, [], replace(BEFORE, cold_student=student, file=str(file))
    )
    (text,) = (one.text for one in advice if one.text.startswith("To settle it"))
    assert f"opd check '{file}' 'student.model={student}' coldstart=null" in text
    assert f"(opd coldstart '{file}')" in text
    given = [f"student.model={student}", *re.findall(r"coldstart=\w+", text)]
    then = config.load(file, given)
    assert then.coldstart is None
    assert cold_student(then) is None
