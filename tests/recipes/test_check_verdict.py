"""Compatibility findings, the arithmetic of the forecast, verdicts, advice."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from conftest import tiny_tokenizer
from opd.core.stats import Estimate
from opd.recipes.check import compatibility
from opd.recipes.check.compatibility import Finding
from opd.recipes.check.forecast import Forecast, ForecastModel, Term, load_model, predict
from opd.recipes.check.probe import DEPTHS
from opd.recipes.check.verdict import (
    RunFacts,
    advise,
    base_model_reason,
    explain,
    judge,
    probability_below,
)


def estimate(value, half=0.02):
    return Estimate(value, value - half, value + half, 100)


def make_features(student, teacher, distance, **more):
    features = {
        "student_accuracy": estimate(student),
        "teacher_accuracy": estimate(teacher),
        "gap": estimate(teacher - student),
        "weighted_teacher_accuracy": estimate(teacher),
        "weighted_gap": estimate(teacher - student),
        "distance": estimate(distance),
        "overlap_mass": estimate(0.9),
        "auroc": estimate(0.7),
        "tilt_gain": estimate(0.1),
    }
    if "continuation_gain" in more:
        more |= {f"gain@{depth:g}": more["continuation_gain"] for depth in DEPTHS}
    return features | {name: estimate(value) for name, value in more.items()}


MODEL = ForecastModel(
    bias=1.0,
    keep=0.5,
    terms=(Term("distance", -3.0, 1.0, 0.5, 0.0, 2.0),),
    spread=2.0,
    floor=0.02,
    noise=0.1,
    fitted_on="by hand",
)


def test_accuracy_after_mixes_the_teachers_and_the_kept_accuracy():
    values = {"student_accuracy": 0.2, "weighted_teacher_accuracy": 0.8, "distance": 1.0}
    s = 1 / (1 + math.exp(-1.0))
    assert MODEL.transfer(values) == pytest.approx(s)
    assert MODEL.accuracy_after(values) == pytest.approx(s * 0.8 + (1 - s) * 0.5 * 0.2)
    near = values | {"distance": 0.0}
    assert MODEL.transfer(near) == pytest.approx(1 / (1 + math.exp(-7.0)))


def test_a_feature_outside_the_fit_is_named_and_clipped():
    far = predict(MODEL, make_features(0.2, 0.8, 5.0))
    assert len(far.out_of_range) == 1
    assert "distance is 5" in far.out_of_range[0]
    assert far.transfer == pytest.approx(MODEL.transfer({"distance": 2.0}))
    assert judge(far, make_features(0.2, 0.8, 5.0)) == "go with changes"


def test_intervals_widen_with_the_probes_own_sampling_error():
    sure = predict(MODEL, make_features(0.2, 0.8, 0.1))
    features = make_features(0.2, 0.8, 0.1) | {"weighted_gap": estimate(0.6, half=0.3)}
    unsure = predict(MODEL, features)
    assert unsure.change.high - unsure.change.low > sure.change.high - sure.change.low
    assert unsure.change.low >= -0.2
    assert unsure.change.high <= 0.8


@pytest.mark.parametrize(
    ("features", "verdict"),
    [
        (make_features(0.2, 0.8, 0.1), "go"),
        (make_features(0.2, 0.8, 1.9), "don't"),  # more accurate, but incompatible
        (make_features(0.2, 0.8, 1.2), "go with changes"),  # undecided
        (make_features(0.2, 0.21, 0.1), "don't"),  # the same data in a larger model
        (make_features(0.8, 0.2, 0.1), "don't"),  # reverse
        ({"distance": estimate(0.1), "overlap_mass": estimate(0.9)}, "go with changes"),
    ],
)
def test_verdicts(features, verdict):
    assert judge(predict(MODEL, features), features) == verdict


def test_an_uncertain_change_is_no_go_and_no_no_go():
    features = make_features(0.2, 0.8, 1.2)
    forecast = predict(MODEL, features)
    wide = Forecast(forecast.transfer, Estimate(0.35, -0.3, 0.8, 100), None, ())
    assert judge(wide, features) == "go with changes"


def test_probabilities_are_those_of_a_normal_interval():
    assert probability_below(Estimate(0.5, 0.5 - 1.645, 0.5 + 1.645, 10), 0.5) == pytest.approx(0.5)
    assert probability_below(Estimate(0.0, -1.645, 1.645, 10), -1.645) == pytest.approx(
        0.05, abs=1e-3
    )
    assert probability_below(Estimate(0.3, 0.3, 0.3, 10), 0.2) == 0.0


def test_reasons_name_what_decides():
    good = make_features(
        0.2, 0.8, 0.1, continuation_gain=0.3, reverse_kl=0.4, offpolicy_overlap_mass=0.99
    )
    reasons = explain(predict(MODEL, good), good)
    assert [r.text for r in reasons] == [
        "The teacher is more accurate than the student",
        "The models are compatible on the student's rollouts",
        "The teacher's scores separate correct from incorrect answers",
    ]
    assert "after 25%, 50%, 75% of a rollout: +30, +30, +30" in reasons[0].evidence
    assert "gap +60.0 points (+58.0 to +62.0)" in reasons[0].evidence
    assert "transfer 100%" in reasons[1].evidence
    strange = make_features(0.2, 0.8, 1.9, continuation_gain=-0.2)
    strange |= {"auroc": Estimate(0.5, 0.4, 0.6, 9)}
    assert [r.text for r in explain(predict(MODEL, strange), strange)] == [
        "The teacher is more accurate on its own, but cannot continue what the student generates",
        "The models are not compatible on the student's rollouts",
        "The teacher's scores do not separate correct from incorrect answers",
    ]


FACTS = RunFacts(truncated=0.0, support_mass=1.0, max_new_tokens=100, cold_start={"coldstart": {}})


def test_advice_names_keys():
    features = make_features(0.2, 0.8, 1.9)
    advice = advise(
        "go with changes",
        predict(MODEL, features),
        features,
        [Finding("template", "warning", "templates differ", "set prompts.chat")],
        replace(FACTS, truncated=0.5, support_mass=0.9),
    )
    keys = {key: value for each in advice for key, value in each.set.items()}
    assert keys == {"coldstart": {}, "rollout.max_new_tokens": 200, "loss.mode": "tail"}
    assert advice[0].text == "templates differ: set prompts.chat"
    alike = make_features(0.2, 0.8, 0.1)
    assert not advise("go", predict(MODEL, alike), alike, [], FACTS)


def test_a_teacher_that_is_more_accurate_only_on_its_own_is_worth_a_cold_start():
    """Its answers are right, those likely under the student are not: imitation can still help."""
    alone = make_features(0.2, 0.9, 1.9)
    alone |= {"weighted_gap": estimate(-0.1), "weighted_teacher_accuracy": estimate(0.1)}
    level = alone | {"gap": estimate(0.1, 0.2)}
    near = alone | {"distance": estimate(0.1)}  # compatible: a cold start has nothing to add
    beginnings = []
    for features in (alone, level, near):
        forecast = predict(MODEL, features)
        assert judge(forecast, features) == "don't"
        advice = advise("don't", forecast, features, [], FACTS)
        beginnings.append([each.text.split()[0] for each in advice])
    assert beginnings == [["Begin"], ["Choose"], ["Choose"]]


def test_a_teacher_equal_to_the_base_model_is_named():
    same = base_model_reason(estimate(0.001, 0.0005), estimate(0.6))
    other = base_model_reason(estimate(0.5), estimate(0.6))
    assert "is the student's base model again" in same.text
    assert "differs from the student's base model" in other.text


def test_the_shipped_model_reads_and_is_monotone_in_distance():
    model = load_model()
    near, far = (
        {"student_accuracy": 0.2, "weighted_teacher_accuracy": 0.9}
        | {t.name: (t.high if (t.weight > 0) == good else t.low) for t in model.terms}
        for good in (True, False)
    )
    assert model.transfer(near) > 0.9
    assert model.transfer(far) < 0.1
    assert 0 <= model.keep <= 1


def test_tokenizers_that_differ_are_a_failure_with_a_fix():
    same = compatibility.check_tokens(
        tiny_tokenizer(), tiny_tokenizer(), student_vocab=40, teacher_vocab=64
    )
    assert same[0].level == "ok"
    assert {p.level for p in same} <= {"ok", "note"}
    other = compatibility.check_tokens(
        tiny_tokenizer(40), tiny_tokenizer(39), student_vocab=40, teacher_vocab=40
    )
    failures = [p for p in other if p.level == "failure"]
    assert failures
    assert all(p.fix for p in failures)


def test_the_first_token_two_templates_differ_in_is_shown():
    tok = tiny_tokenizer()
    point = compatibility.check_template([0, 5, 6], [0, 5, 7, 8], tok)
    assert point.level == "warning"
    assert "token 2" in point.message
    assert "6 'w6'" in point.message
    assert "7 'w7'" in point.message
    assert "nothing" in compatibility.check_template([0], [0, 5], tok).message
    assert compatibility.check_template([0, 5], [0, 5], tok).level == "ok"


@pytest.mark.parametrize(
    ("choice", "level"), [(None, "failure"), ("student", "note"), ("union", "note")]
)
def test_ends_that_differ_need_a_choice(choice, level):
    point = compatibility.check_end_tokens(
        frozenset({1}), frozenset({1, 2}), choice, tiny_tokenizer()
    )
    assert point.level == level
    assert (
        compatibility.check_end_tokens(frozenset({1}), frozenset({1}), None, tiny_tokenizer()).level
        == "ok"
    )


def test_thinking_switches_are_noticed():
    plain, thinks = tiny_tokenizer(), tiny_tokenizer()
    thinks.chat_template = "{{ enable_thinking }}"
    assert compatibility.check_thinking(plain, plain, {}) is None
    assert compatibility.check_thinking(plain, thinks, {}).level == "warning"
    assert compatibility.check_thinking(plain, thinks, {"enable_thinking": False}).level == "ok"


@pytest.mark.parametrize(("length", "level"), [(None, "note"), (20, "ok"), (19, "failure")])
def test_room_for_prompt_and_completion(length, level):
    point = compatibility.check_context("teacher", length, 8, 12)
    assert point.level == level
    if level == "failure":
        assert "rollout.max_new_tokens to 11" in point.fix
