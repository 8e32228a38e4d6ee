"""Advice of `opd check` that is followed: by `--apply`, by `recipe: auto`, by the next check."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import yaml

from opd import config
from opd.commands.auto import is_refused
from opd.commands.check import gather, output
from opd.commands.check.candidates import Candidate
from opd.commands.check.judging import cold_start
from opd.commands.check.result import CheckResult, TeacherResult
from opd.demo.run_config import demo_config
from opd.recipes.check.advice import Advice, advise, decide
from opd.recipes.check.forecast import predict
from opd.recipes.check.reasons import Reason, nothing_accepted_reason
from opd.reports.check_page import check_document, check_verdict
from opd.reports.terminal import render_text
from support.check_features import FACTS, MODEL, RUN, estimate, make_features, pilot


def test_a_cold_start_that_waits_for_an_alarm_is_begun_with_and_keeps_its_settings(tmp_path):
    """It was given a rate and went on waiting; `--apply` dropped everything else it had."""
    data = demo_config(tmp_path / "run") | {"alarms": {"action": "act"}}
    data["coldstart"] = {"when": "alarm", "mass": 0.9, "lr": 2e-3}
    cfg = config.parse(data)
    pair = Mock()
    pair.student.config.hidden_size = 64
    candidate = Candidate("teacher", cfg, [], pair, teacher_samplers=Mock())
    section = cold_start(candidate, overlap(0.5, 0.5))
    assert section == {"coldstart": {"when": "start"}}
    file, out = tmp_path / "run.yaml", tmp_path / "out.yaml"
    file.write_text(yaml.safe_dump(data))
    output.apply_advice(file, (), cfg, [Advice("Begin with a cold start", section)], out)
    applied = config.load(out).coldstart
    assert (applied.when, applied.mass, applied.lr) == ("start", 0.9, 2e-3)


def overlap(mass, top1):
    return {"overlap_mass": estimate(mass), "top1_agreement": estimate(top1)}


@pytest.mark.parametrize("mass", [0.97, 0.9])
def test_a_cold_start_is_not_advised_where_it_would_end_before_it_begins(tmp_path, mass):
    """It made no round, its student was the one before, and the next check advised it again."""
    data = demo_config(tmp_path / "run")
    if mass != 0.97:  # the default's
        data |= {"alarms": {"action": "act"}, "coldstart": {"when": "alarm", "mass": mass}}
    pair = Mock()
    pair.student.config.hidden_size = 64
    candidate = Candidate("teacher", config.parse(data), [], pair, teacher_samplers=Mock())
    assert cold_start(candidate, overlap(mass + 0.001, 0.8)) is None
    assert cold_start(candidate, overlap(mass - 0.001, 0.8)) is not None
    assert cold_start(candidate, overlap(mass + 0.001, 0.79)) is not None
    narrow = config.parse(data, ["loss.k=4"])  # the phase looks at the mass of four tokens then
    candidate = replace(candidate, cfg=narrow)
    assert cold_start(candidate, overlap(mass + 0.001, 0.8)) is not None


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


def texts_of(verdict, features, **facts):
    forecast = predict(MODEL, features, RUN)
    return advise(verdict, forecast, features, [], replace(FACTS, **facts))


def test_a_limit_is_raised_as_far_as_the_context_goes():
    """Twice the limit was advised, which the next check refused: the context is too short."""
    alike = make_features(0.2, 0.8, 0.1)
    (one,) = texts_of("go", alike, truncated=0.5, room=150)
    assert one.set == {"rollout.max_new_tokens": 150}
    (none,) = texts_of("go", alike, truncated=0.5, room=100)
    assert not none.set
    assert "the models' context has no room for more" in none.text


def test_both_limits_that_cut_are_raised():
    features = make_features(0.2, 0.8, 0.1, teacher_truncated=0.9)
    limit = ("eval.0.max_new_tokens", 32)
    advice = texts_of("go", features, truncated=0.9, answer_limit=limit)
    assert [one.set for one in advice] == [
        {"rollout.max_new_tokens": 200},
        {"eval.0.max_new_tokens": 64},
    ]
    assert len(texts_of("go", features, truncated=0.9)) == 1  # one limit for both


def test_a_student_that_answers_everything_is_not_told_to_get_a_better_teacher():
    (one,) = texts_of("don't", make_features(0.98, 1.0, 0.1))
    assert one.text.startswith("Choose harder prompts")


def test_answers_that_are_cut_off_are_not_blamed_on_the_grader_first():
    cut = {"student_truncated": estimate(0.9), "teacher_truncated": estimate(0.7)}
    reason = nothing_accepted_reason(make_features(0.0, 0.0, 0.1) | cut)
    assert "cut off" in reason.text
    assert "student 90.0%" in reason.evidence
    whole = cut | {"teacher_truncated": estimate(0.1)}
    reason = nothing_accepted_reason(make_features(0.0, 0.0, 0.1) | whole)
    assert "suspect the grader or the template" in reason.text


def test_a_candidate_knows_what_the_others_answered(monkeypatch):
    """Of two teachers one was right: the grader was suspected of the other one's answers."""

    def side(*correct):
        answers = None if not correct else SimpleNamespace(correct=np.array([correct], dtype=bool))
        return None, SimpleNamespace(answers=answers)

    monkeypatch.setattr(gather, "compute_features", lambda student, teacher: {})

    def features(*sides):
        gathering = SimpleNamespace(pilots={}, probe=SimpleNamespace(sides=sides))
        return [gather.Gathering.features(gathering, i) for i in range(len(sides))]

    wrong, right, scores = side(0, 0), side(1, 1), side()
    of_wrong, of_right, of_scores = features(wrong, right, scores)
    assert of_wrong["others_accuracy"].value == of_scores["others_accuracy"].value == 1.0
    assert of_right["others_accuracy"].value == 0.0
    assert features(right) == [{}]
    assert features(right, scores)[0] == {}


def test_a_go_with_advice_does_not_say_that_nothing_stands_against_it():
    record = {"verdict": "go", "reasons": ["r"], "advice": [{"text": "60% are cut off"}]}
    assert "nothing stands against" not in check_verdict(record).headline
    assert "nothing stands against" in check_verdict(record | {"advice": []}).headline


def test_the_table_of_teachers_calls_a_no_go_what_the_headline_calls_it():
    teachers = [{"name": "a", "verdict": "go"}, {"name": "b", "verdict": "don't"}]
    text = "\n".join(render_text(check_document({"verdict": "go", "teachers": teachers})))
    assert "no-go" in text
    assert "don't" not in text


def test_advice_without_a_predicted_effect_is_not_said_to_have_one():
    """A cold start, 'what it brings is not predicted', below 'each with its predicted effect'."""
    longer = Advice("Set train.steps to 160", {"train.steps": 160}, estimate(0.3)).record()
    cold = Advice("Begin with a cold start", {"coldstart": {}}).record()
    record = {"verdict": "go with changes", "advice": [longer]}
    assert "each with its predicted effect" in check_verdict(record).headline
    headline = check_verdict(record | {"advice": [longer, cold]}).headline
    assert headline.startswith("Go with changes: ")
    assert "each with" not in headline


def test_a_cold_start_does_not_excuse_steps_that_cannot_be_made(tmp_path):
    """`recipe: auto` made it, and ended at the third on-policy step."""
    cfg = config.parse(demo_config(tmp_path / "run"))
    features = make_features(0.2, 0.8, 3.0) | pilot(0.05, -0.2, 0.0)
    lost = features | {"pilot_refused": estimate(1.0, 0.0)}
    for numbers, stopped in ((features, False), (lost, True)):
        verdict, forecast, _ = decide(MODEL, numbers, RUN)
        assert verdict == "don't"
        one = TeacherResult(
            Candidate("one", cfg, [], None),
            verdict,
            numbers,
            forecast=forecast,
            advice=advise(verdict, forecast, numbers, [], FACTS),
        )
        result = CheckResult("run.yaml", [one], None, None, (), (), 1.0)
        assert is_refused(result) == stopped
