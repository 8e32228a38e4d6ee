"""A verdict and what would settle it, where little was measured or no more can be."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from opd.core.stats import Estimate
from opd.recipes.check.advice import advise, decide
from opd.recipes.check.forecast import predict
from opd.recipes.check.reasons import AGAINST, confidence, explain
from opd.recipes.check.verdict import judge, nothing_accepted
from support.check_features import FACTS, MODEL, RUN, estimate, make_features, pilot


def test_what_would_settle_it_can_be_done():
    """A check looks at 192 prompts at most and makes so many pilot steps, whatever its budget."""

    def texts(features, **facts):
        forecast = predict(MODEL, features, RUN)
        known = replace(FACTS, **facts)
        return [a.text for a in advise("not known", forecast, features, [], known)]

    noisy = make_features(0.2, 0.8, 0.1, half=0.4) | pilot(0.05, 0.05, 0.1, half=0.2)
    (more,) = texts(noisy, prompts=128)
    assert "on about 192 prompts instead of 128" in more
    for known in ({"prompts": 192}, {"prompts": 40, "most_prompts": 40}):
        (text,) = texts(noisy | {"stretch_path": estimate(0.5)}, **known)
        assert text.startswith("To settle it: a larger --budget, enough for half of the run")
    unseen = {name: e for name, e in noisy.items() if name != "pilot_kl_drop"}
    (text,) = texts(unseen, prompts=192)  # its speed is not known: the check makes no half of it
    assert text.startswith("To settle it: train half")
    for name in ("part_steps", "pilot_path"):  # a pilot may be half of a run of few steps
        (text,) = texts(noisy | {name: estimate(0.5)}, prompts=192)
        assert text.startswith("To settle it: a larger --budget, enough for all of the run")
    (text,) = texts(noisy | {"part_path": estimate(1.0)}, prompts=192)
    assert text.startswith("To settle it: train, and evaluate on held-out prompts")


@pytest.mark.parametrize(
    "features",
    [
        make_features(0.5, 0.5, 0.1),  # level
        make_features(0.2, 0.8, 0.1),  # a go
        make_features(0.8, 0.2, 0.1),  # worse
    ],
)
def test_a_few_prompts_decide_nothing(features):
    """One prompt that both answered was a no-go, beside a lead of +0.0 points (-100 to +100)."""
    few = {name: replace(e, n=7) for name, e in features.items()}
    forecast = predict(MODEL, few, RUN)
    assert judge(forecast, few) == "not known"
    first = explain("not known", forecast, few, RUN)[0]
    assert first.text == "Too few prompts were measured to decide anything"
    enough = {name: replace(e, n=8) for name, e in features.items()}
    assert judge(predict(MODEL, enough, RUN), enough) != "not known"
    texts = " ".join(
        a.text for a in advise("not known", forecast, few, [], replace(FACTS, prompts=7))
    )
    assert "To settle it: check on about 32 prompts instead of 7" in texts
    short = replace(FACTS, prompts=7, most_prompts=7)
    texts = " ".join(a.text for a in advise("not known", forecast, few, [], short))
    assert "give prompts.path more than its 7 prompts" in texts


def refused(steps, of):
    """A pilot of which so many steps were not made, since loss or gradient was not finite."""
    made = of - steps
    fraction = estimate(steps / of, 0.0)
    return pilot(0.0125 * made, 0.0, 0.0) | {
        "pilot_steps": estimate(of, 0.0),
        "pilot_refused": fraction,
    }


@pytest.mark.parametrize("answers", [True, False])
def test_a_run_whose_steps_are_not_finite_is_a_no_go(answers):
    """The path of such a pilot is 0, by which the forecast divided; training gives up after 3."""
    features = make_features(0.2, 0.8, 0.1) if answers else {"distance": estimate(0.1)}
    features |= refused(4, 4)
    forecast = predict(MODEL, features, RUN)
    assert judge(forecast, features) == "don't"
    first = explain("don't", forecast, features, RUN)[0]
    assert first.text == "Not one step of the run can be made: its loss or gradient is not finite"
    texts = " ".join(a.text for a in advise("don't", forecast, features, [], FACTS))
    assert "opd verify" in texts
    assert "cold start" not in texts
    assert "chance" not in confidence(forecast, features)
    assert "Without answers" not in confidence(forecast, features)
    assert decide(MODEL, features, RUN)[1].change is None  # of a run that ends at its third step


def test_a_step_that_was_not_made_speaks_against_a_go():
    features = make_features(0.2, 0.8, 0.1) | refused(2, 4)
    forecast = predict(MODEL, features, RUN)
    texts = [r.text for r in explain("go", forecast, features, RUN)]
    assert (
        f"{AGAINST}2 of the pilot's 4 steps were not made: loss or gradient was not finite" in texts
    )
    two = features | refused(2, 2)
    assert judge(predict(MODEL, two, RUN), two) == "not known"


def test_a_reverse_kl_that_is_not_finite_is_not_shown_as_a_number():
    features = make_features(0.2, 0.8, 0.1) | pilot(0.05, 0.08, 0.2)
    features["pilot_kl_drop"] = Estimate(math.nan, math.nan, math.nan, 100)
    forecast = predict(MODEL, features, RUN)
    assert "nan" not in " ".join(r.evidence for r in explain("not known", forecast, features, RUN))


@pytest.mark.parametrize("name", ["pass_at_n", "greedy_accuracy", "others_accuracy"])
def test_a_grader_that_accepted_a_rollout_is_not_suspected(name):
    """No answer of 16 and 16 was right, some of 32 rollouts were: the grader was blamed."""
    none = make_features(0.0, 0.0, 0.1)
    assert nothing_accepted(none)
    assert decide(MODEL, none, RUN)[0] == "not known"
    some = none | {name: estimate(0.25)}
    assert not nothing_accepted(some)
    assert decide(MODEL, some, RUN)[0] == "don't"
    assert nothing_accepted(none | {name: estimate(0.0)})


def test_steps_that_cannot_be_made_come_before_a_grader_that_accepts_nothing():
    """'not known' and the grader: `recipe: auto` trained a run that ends at its third step."""
    features = make_features(0.0, 0.0, 0.1) | refused(4, 4)
    verdict, forecast, _ = decide(MODEL, features, RUN)
    assert verdict == "don't"
    assert explain(verdict, forecast, features, RUN)[0].text.startswith("Not one step of the run")


def test_nothing_is_predicted_from_accuracies_that_are_in_doubt():
    """'Suspect the grader', and beside it 'chance that accuracy rises: 12%' by that grader."""
    features = make_features(0.0, 0.0, 0.1) | pilot(0.05, 0.0, 0.1)
    verdict, forecast, _ = decide(MODEL, features, RUN)
    assert verdict == "not known"
    assert "chance" not in confidence(forecast, features)
    assert "in doubt" in confidence(forecast, features)
    shown = forecast.record()
    names = ("change", "recovery", "rises", "recovers_half", "least")
    assert {shown[name] for name in names} == {None}
    assert not shown["views"]
    assert shown["transfer"] > 0  # rests on no grader
    (one,) = advise(verdict, forecast, features, [], FACTS)
    assert one.text.startswith("To settle it: read the two answers below")
    cut = features | {"student_truncated": estimate(0.9), "teacher_truncated": estimate(0.9)}
    (one,) = advise(verdict, forecast, cut, [], replace(FACTS, truncated=0.9))
    assert one.set == {"rollout.max_new_tokens": 200}
