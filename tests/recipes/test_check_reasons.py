"""Reasons of a verdict say what the numbers beside them say."""

from __future__ import annotations

import math

from opd.core.stats import Estimate
from opd.recipes.check.forecast import predict
from opd.recipes.check.reasons import AGAINST, explain
from opd.recipes.check.verdict import rank
from opd.recipes.check.wording import number, percent, points
from support.check_features import MODEL, RUN, estimate, make_features, pilot


def reasons(verdict, features):
    return explain(verdict, predict(MODEL, features, RUN), features, RUN)


def test_a_lead_that_is_small_and_certain_is_not_called_unmeasurable():
    features = make_features(0.94, 0.98, 0.1)
    assert features["gap"].low > 0
    texts = [reason.text for reason in reasons("don't", features)]
    assert "The teacher is more accurate than the student, but by less than 5 points" in texts
    level = make_features(0.94, 0.95, 0.1)
    texts = [reason.text for reason in reasons("don't", level)]
    assert "The teacher is not measurably more accurate than the student" in texts


def test_what_speaks_against_a_go_is_marked():
    """Beside it the headline said that nothing stands against the run."""
    alone = make_features(0.2, 0.8, 0.1, continuation_gain=-0.2) | pilot(0.05, 0.08, 0.2)
    texts = [reason.text for reason in reasons("go", alone)]
    assert any(
        t.startswith(f"{AGAINST}the teacher is more accurate on its own, but") for t in texts
    )
    unsure = make_features(0.2, 0.4, 0.1) | {"gap": Estimate(0.2, -0.05, 0.4, 100)}
    texts = [reason.text for reason in reasons("go", unsure)]
    assert f"{AGAINST}the teacher is not measurably more accurate than the student" in texts
    assert not any(
        "measurably more" in t and AGAINST in t
        for t in (reason.text for reason in reasons("don't", unsure))
    )


def test_the_teachers_accuracy_beyond_the_best_rollout_is_called_that():
    """Called 'teacher accuracy minus that', it was +2 points beside 30 % and 90 %."""
    features = make_features(0.6, 0.3, 0.1, pass_at_n=0.9, headroom=0.02)
    evidence = reasons("don't", features)[1].evidence
    assert "minus that" not in evidence
    assert "the teacher's accuracy beyond the student's best rollout +2.0 points" in evidence


def test_scores_that_prefer_wrong_answers_are_said_to():
    """An AUROC of 0.3 (0.25 to 0.35) 'did not measurably separate' right from wrong."""
    features = make_features(0.2, 0.8, 0.1) | {"auroc": Estimate(0.3, 0.25, 0.35, 100)}
    texts = [reason.text for reason in reasons("go", features)]
    assert (
        f"{AGAINST}the teacher's scores are higher for incorrect answers than for correct ones"
        in texts
    )


def test_a_rise_at_a_raised_rate_is_not_followed_by_its_denial():
    """'steps of the pilot raise accuracy', and below it 'move accuracy neither way yet' alone."""
    features = make_features(0.0, 0.9, 1.9) | pilot(0.15, 0.0, 0.3)
    features |= {"stretch_path": estimate(0.5), "stretch_resampled": estimate(0.04, 0.03)}
    first, *others = (reason.text for reason in reasons("not known", features))
    assert "steps of the pilot raise accuracy" in first
    (text,) = (t for t in others if t.startswith("The run's first steps"))
    assert "neither way yet; more of them at a raised rate raise it" in text


def test_teachers_of_unknown_and_of_known_accuracy_are_ranked_by_the_change():
    """A fraction of behaviour adopted was compared with points of accuracy."""
    forecasts = {
        "rises": predict(MODEL, make_features(0.2, 0.8, 1.1), RUN),
        "unknown": predict(MODEL, {"distance": estimate(0.1)}, RUN),
        "less known": predict(MODEL, {"distance": estimate(1.0)}, RUN),
        "falls": predict(MODEL, make_features(0.8, 0.9, 1.9), RUN),
    }
    assert forecasts["unknown"].transfer > forecasts["rises"].change.value > 0
    order = sorted(forecasts, key=lambda name: rank("not known", forecasts[name]), reverse=True)
    assert order == list(forecasts)
    assert rank("go", forecasts["falls"]) > rank("not known", forecasts["rises"])


def test_one_prompt_has_no_interval():
    one = Estimate(0.25, -math.inf, math.inf, 1)
    assert percent(one) == "25.0% (interval not known)"
    assert points(one) == "+25.0 points (interval not known)"
    assert number(one) == "0.25 (interval not known)"
    assert number(Estimate(0.25, 0.0, 0.5, 9)) == "0.25 (0 to 0.5)"
