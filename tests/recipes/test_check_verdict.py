"""Compatibility findings, verdicts and their reasons, changes and advice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opd.config import Loss
from opd.core.stats import Estimate
from opd.recipes.check import compatibility
from opd.recipes.check.advice import (
    Advice,
    advise,
    cold_start_rate,
    find_changes,
    support_mass,
)
from opd.recipes.check.compatibility import Finding
from opd.recipes.check.forecast import predict
from opd.recipes.check.reasons import AGAINST, base_model_reason, confidence, explain
from opd.recipes.check.verdict import cold_start_helps, decisive_rule, judge
from opd.recipes.check.wording import points
from opd.testing import tiny_tokenizer
from opd.types import Rollout
from support.check_features import FACTS, MODEL, RUN, estimate, make_features, pilot


def judged(features):
    return judge(predict(MODEL, features, RUN), features)


@pytest.mark.parametrize(
    ("features", "verdict"),
    [
        (make_features(0.2, 0.8, 0.1), "go"),
        (make_features(0.2, 0.8, 1.9), "don't"),  # more accurate, but incompatible
        (make_features(0.2, 0.8, 1.15), "not known"),
        (make_features(0.2, 0.21, 0.1), "don't"),  # the same data in a larger model
        (make_features(0.8, 0.2, 0.1), "don't"),  # reverse
        ({"distance": estimate(0.1), "overlap_mass": estimate(0.9)}, "not known"),
    ],
)
def test_verdicts(features, verdict):
    assert judged(features) == verdict


def test_a_teacher_that_is_certainly_worse_is_never_a_go():
    """A teacher 29 points worse got a go, since answers that the student likes were right."""
    features = make_features(0.6, 0.31, 0.05) | {"weighted_teacher_accuracy": estimate(0.95)}
    assert features["gap"].high < 0
    assert judged(features) in ("don't", "not known")
    features = make_features(0.6, 0.31, 0.05)
    assert judged(features) == "don't"


def test_an_interval_below_zero_is_a_no_go_outside_the_fitted_range_too():
    features = make_features(0.8, 0.9, 6.0)
    forecast = predict(MODEL, features, RUN)
    assert forecast.out_of_range
    assert forecast.change.high < 0
    assert judge(forecast, features) == "don't"
    assert (
        explain("don't", forecast, features, RUN)[0].text
        == "Training is predicted to lower accuracy"
    )


def test_outside_the_fitted_range_only_a_pilot_makes_a_go():
    near = make_features(0.2, 0.9, -1.0)
    forecast = predict(MODEL, near, RUN)
    assert forecast.out_of_range
    assert judge(forecast, near) == "not known"
    piloted = near | pilot(0.05, 0.08, 0.2)
    assert judge(predict(MODEL, piloted, RUN), piloted) == "go"


def test_a_pilot_of_one_step_decides_nothing():
    """A real pair: its first step led away from the teacher, 24 of them to 43 % of the gap."""
    features = make_features(0.2, 0.8, 1.15)
    away = pilot(0.042, 0.0, -0.64) | {"pilot_off_gain": estimate(-0.1)}
    four = features | away
    one = four | {"pilot_steps": Estimate(1.0, 1.0, 1.0, 1)}
    assert predict(MODEL, four, RUN).change != predict(MODEL, features, RUN).change
    forecast = predict(MODEL, one, RUN)
    assert forecast.change == predict(MODEL, features, RUN).change
    assert judge(forecast, one) == "not known"
    assert "the pilot made 1 of the 2 steps that the forecast needs" in confidence(forecast, one)
    # Of a run of one step it is the whole run.
    whole = one | {"pilot_path": Estimate(1.0, 1.0, 1.0, 1)}
    assert predict(MODEL, whole, RUN).change != forecast.change


@pytest.mark.parametrize("name", ["pilot_resampled", "stretch_resampled"])
def test_a_rise_that_the_pilot_measured_is_never_called_too_little(name):
    far = make_features(0.0, 0.9, 1.9) | pilot(0.15, 0.0, 0.3) | {"stretch_path": estimate(0.5)}
    flat = far | {name: estimate(0.02, 0.03)}
    assert decisive_rule(predict(MODEL, flat, RUN), flat) == "too little"
    assert judge(predict(MODEL, flat, RUN), flat) == "don't"
    risen = far | {name: estimate(0.04, 0.03)}
    assert decisive_rule(predict(MODEL, risen, RUN), risen) == "rising"
    assert judge(predict(MODEL, risen, RUN), risen) == "not known"


def test_answers_sampled_again_count_as_a_rise_where_reweighted_rollouts_say_nothing():
    features = make_features(0.0, 0.9, 1.9) | pilot(0.15, 0.0, 0.3)
    features |= {"pilot_resampled": estimate(0.06, 0.04)}
    forecast = predict(MODEL, features, RUN)
    texts = [reason.text for reason in explain(judge(forecast, features), forecast, features, RUN)]
    assert any(text.startswith("The run's first steps raise accuracy") for text in texts)


@pytest.mark.parametrize(
    "features",
    [
        make_features(0.2, 0.8, 0.1) | pilot(0.05, -0.05, 0.1),
        make_features(0.2, 0.8, 1.9) | pilot(0.05, 0.08, 0.1),
        make_features(0.2, 0.8, 0.1) | {"auroc": Estimate(0.5, 0.4, 0.6, 9)},
        make_features(0.2, 0.8, 0.1)
        | pilot(0.05, 0.08, 0.2)
        | {"auroc": Estimate(0.5, 0.4, 0.6, 9)},
        make_features(0.6, 0.3, 0.1),
        make_features(0.2, 0.21, 1.9),
    ],
)
def test_no_reason_contradicts_the_verdict_unmarked(features):
    forecast = predict(MODEL, features, RUN)
    verdict = judge(forecast, features)
    texts = [reason.text for reason in explain(verdict, forecast, features, RUN)]
    against = {"go": ("not compatible", "do not measurably separate", "lower", "less accurate"),
               "don't": ("are compatible", "scores separate", "raise accuracy",
                         "is more accurate than")}.get(verdict, ())  # fmt: skip
    for text in texts[1:]:
        if any(words in text for words in against):
            assert text.startswith(AGAINST), (verdict, text)
        else:
            assert not text.startswith(AGAINST), (verdict, text)


def test_a_change_of_nothing_has_no_minus_sign():
    assert points(Estimate(0.02, -0.0001, 0.1, 9)) == "+2.0 points (+0.0 to +10.0)"


def test_the_first_reason_is_the_rule_that_decided_and_names_lead_and_temperature():
    features = make_features(0.2, 0.8, 0.1, continuation_gain=0.3)
    forecast = predict(MODEL, features, RUN)
    reasons = explain("go", forecast, features, RUN)
    assert reasons[0].text == "Training is predicted to recover most of what the teacher is ahead"
    assert (
        "the teacher's lead is +60.0 points (+58.0 to +62.0) at temperature 0.7, top_p 0.95"
        in reasons[0].evidence
    )
    assert "after 25%, 50%, 75% of a rollout: +30, +30, +30" in reasons[1].evidence
    assert "gap +60.0 points (+58.0 to +62.0)" in reasons[1].evidence
    greedy = explain("go", forecast, features, replace(RUN, eval_temperature=0.0))
    assert "temperature 0 (greedy), as the first held-out set" in greedy[0].evidence
    alone = explain("go", forecast, features, replace(RUN, evaluated=False))
    assert "as in training" in alone[0].evidence
    assert decisive_rule(forecast, features) == "recovers"


def test_pilot_and_distance_that_disagree_are_named():
    features = make_features(0.2, 0.8, 0.1) | pilot(0.05, -0.06, 0.02, half=0.005)
    forecast = predict(MODEL, features, RUN)
    assert forecast.disagrees
    texts = [reason.text for reason in explain(judge(forecast, features), forecast, features, RUN)]
    assert any("disagree with what the models' distance alone predicts" in text for text in texts)
    agreeing = make_features(0.2, 0.8, 0.1) | pilot(0.05, 0.1, 0.2)
    assert not predict(MODEL, agreeing, RUN).disagrees


def test_answers_of_the_teacher_that_are_cut_off_are_reported():
    features = make_features(0.2, 0.3, 0.1, teacher_truncated=0.9)
    forecast = predict(MODEL, features, RUN)
    texts = [reason.text for reason in explain("not known", forecast, features, RUN)]
    assert any("90% of the teacher's answers are cut off" in text for text in texts)
    advice = advise("not known", forecast, features, [], FACTS)
    assert {"rollout.max_new_tokens": 200} in [each.set for each in advice]


def test_a_change_is_named_with_its_predicted_effect_or_there_is_none():
    slow = make_features(0.2, 0.8, 0.1) | pilot(0.1, 0.008, 0.02, half=0.001)
    run = replace(RUN, steps=40)
    forecast = predict(MODEL, slow, run)
    assert judge(forecast, slow) != "go"
    changes = find_changes(MODEL, slow, run)
    assert len(changes) == 1
    assert changes[0].set
    assert changes[0].effect.low > -0.05
    assert "predicted change then +" in changes[0].text
    assert changes[0].record()["effect"][0] == changes[0].effect.value
    hopeless = make_features(0.2, 0.8, 1.9) | pilot(0.1, -0.02, 0.02)
    assert find_changes(MODEL, hopeless, run) == []
    assert find_changes(MODEL, make_features(0.2, 0.8, 1.0), run) == []  # no pilot, no speed


def test_not_known_names_what_would_settle_it():
    def texts(features):
        forecast = predict(MODEL, features, RUN)
        return " ".join(a.text for a in advise("not known", forecast, features, [], FACTS))

    assert "answer column" in texts({"distance": estimate(0.1)})
    assert "pilot" in texts(make_features(0.2, 0.8, 1.0))
    noisy = make_features(0.2, 0.8, 0.1, half=0.4) | pilot(0.05, 0.05, 0.1, half=0.2)
    assert "prompts instead of 64" in texts(noisy)
    assert "enough for half of the run" in texts(
        make_features(0.2, 0.8, 1.0) | pilot(0.05, 0.01, 0.1, half=0.001)
    )


def test_a_teacher_that_cannot_answer_is_not_blamed_on_the_prompts():
    """Of a server that only scores, the check asked for the answer column that was there."""
    features = {"distance": estimate(0.1), "student_accuracy": estimate(0.4)}
    forecast = predict(MODEL, features, RUN)
    (first, *_) = explain("not known", forecast, features, RUN)
    advice = advise("not known", forecast, features, [], FACTS)
    texts = [first.text, first.evidence, confidence(forecast, features), *(a.text for a in advice)]
    assert "answer column" not in " ".join(texts)
    assert "Without answers it" not in first.text
    assert all("the teacher" in text.lower() for text in texts[:3])
    assert "train half of the steps" in texts[-1]


def test_the_limit_that_cuts_the_teachers_answers_is_the_one_to_raise():
    features = make_features(0.2, 0.8, 0.1, teacher_truncated=0.9)
    forecast = predict(MODEL, features, RUN)
    facts = replace(FACTS, answer_limit=("eval.0.max_new_tokens", 32))
    (advice,) = (a for a in advise("go", forecast, features, [], facts) if "cut off" in a.text)
    assert advice.set == {"eval.0.max_new_tokens": 64}
    assert "teacher's answers are cut off at 32 tokens" in advice.text


def test_confidence_says_what_was_not_tried():
    features = make_features(0.2, 0.8, 0.1)
    assert "no step of the run was tried" in confidence(predict(MODEL, features, RUN), features)
    piloted = features | pilot(0.05, 0.08, 0.2)
    assert "no step" not in confidence(predict(MODEL, piloted, RUN), piloted)
    unseen = {k: v for k, v in piloted.items() if k != "pilot_kl_drop"}  # without a top k
    text = confidence(predict(MODEL, unseen, RUN), unseen)
    assert "no step" not in text
    assert "steps say nothing of its length and rate" in text


def test_advice_names_keys():
    features = make_features(0.2, 0.8, 1.9)
    advice = advise(
        "not known",
        predict(MODEL, features, RUN),
        features,
        [Finding("template", "warning", "templates differ", "set prompts.chat")],
        replace(FACTS, truncated=0.5, support_mass=0.9),
    )
    keys = {key: value for each in advice for key, value in each.set.items()}
    assert keys == {"coldstart": {}, "rollout.max_new_tokens": 200, "loss.mode": "tail"}
    assert advice[0].text == "templates differ: set prompts.chat"
    alike = make_features(0.2, 0.8, 0.1)
    assert not advise("go", predict(MODEL, alike, RUN), alike, [], FACTS)
    assert isinstance(advice[0], Advice)


@pytest.mark.parametrize(
    ("loss", "mass"),
    [
        ({"k": 2}, 0.8),
        ({"k": 4}, 0.95),
        ({"k": 2, "mode": "reference"}, 0.8),
        ({"k": 2, "mode": "tail"}, 1.0),
        ({"support": "full"}, 1.0),
        ({"support": "sampled"}, 1.0),
        ({"support": "teacher_topk"}, 1.0),
    ],
)
def test_the_mass_that_a_tail_bucket_would_add_is_that_of_the_runs_own_loss(loss, mass):
    rollout = Rollout.of_ids((1,), [2, 3], topk_ids=np.zeros((2, 4), np.int32))
    logp = np.log(np.array([[0.5, 0.3, 0.1, 0.05]] * 2, np.float32))
    assert support_mass(Loss(**loss), [replace(rollout, topk_logp=logp)]) == pytest.approx(mass)
    assert support_mass(Loss(), [Rollout.of_ids((1,), [2])]) == 1.0  # a sampler that tells none


@pytest.mark.parametrize(
    ("run_rate", "hidden", "adapters", "advised"),
    [
        (1e-6, 3584, False, 1e-5),  # the paper's 7B
        (1e-3, 64, False, 4e-3),  # the lab's models
        (3e-5, 576, False, 1e-4),  # SmolLM2: its teachers were fine-tuned at this rate
        (1e-4, 896, True, 3e-4),  # Qwen 0.5B learns at it, and forgets everything at 1e-3
        (1e-5, 896, False, 6.4e-5),
        (2e-3, 896, True, 2e-3),  # the user's own rate, as high as it is
    ],
)
def test_a_cold_start_is_advised_at_a_rate_that_supervised_training_takes(
    run_rate, hidden, adapters, advised
):
    assert cold_start_rate(run_rate, hidden, adapters=adapters) == pytest.approx(advised)


def test_a_teacher_that_is_more_accurate_only_on_its_own_is_worth_a_cold_start():
    """Its answers are right, those likely under the student are not: imitation can still help."""
    alone = make_features(0.2, 0.9, 1.9) | {"weighted_teacher_accuracy": estimate(0.1)}
    level = alone | {"gap": estimate(0.1, 0.2)}
    assert cold_start_helps(alone)
    assert not cold_start_helps(level)
    forecast = predict(MODEL, alone, RUN)
    assert judge(forecast, alone) == "don't"
    (advice,) = advise("don't", forecast, alone, [], FACTS)
    assert advice.text.startswith("Begin with a cold start")
    assert advice.effect is None
    worse = make_features(0.5, 0.2, 0.1)
    (advice,) = advise("don't", predict(MODEL, worse, RUN), worse, [], FACTS)
    assert advice.text.startswith("Choose a teacher")


def test_a_teacher_equal_to_the_base_model_is_named():
    same = base_model_reason(estimate(0.001, 0.0005), estimate(0.6), "don't")
    other = base_model_reason(estimate(0.5), estimate(0.6), "go")
    assert "is the student's base model again" in same.text
    assert "differs from the student's base model" in other.text
    unsure = base_model_reason(Estimate(0.05, 0.0, 0.1, 9), estimate(0.6), "go")
    assert unsure.text.endswith("is not known")
    against = base_model_reason(estimate(0.001, 0.0005), estimate(0.6), "go")
    assert against.text.startswith(AGAINST)  # beside it, a go said that nothing stands against it


def test_a_grader_that_accepts_nothing_is_not_settled_by_more_prompts():
    features = make_features(0.0, 0.0, 1.0)
    forecast = predict(MODEL, features, RUN)
    (one,) = advise("not known", forecast, features, [], FACTS)
    assert "the two answers below" in one.text
    assert "instead of" not in one.text


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
