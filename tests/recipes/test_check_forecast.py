"""The arithmetic of the forecast: three outcomes, views, widths, probabilities."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from opd.core.stats import Estimate
from opd.recipes.check.forecast import (
    MAX_GROWTH,
    derived_features,
    estimate_views,
    growth,
    pilot_change,
    predict,
    reached,
)
from opd.recipes.check.forecast_model import View, load_model, model_of_record
from support.check_features import MODEL, RUN, estimate, make_features

MIXTURE = MODEL.mixture


def pilot(path=0.05, change=0.05, kl_drop=0.1, half=0.005):
    return {
        "pilot_path": Estimate(path, path, path, 1),
        "pilot_change": estimate(change, half),
        "pilot_kl_drop": estimate(kl_drop, half),
    }


def test_a_student_adopts_loses_or_stays():
    values = {"student_accuracy": 0.2, "teacher_accuracy": 0.9, "weighted_teacher_accuracy": 0.8}
    values["distance"] = 1.0
    a, l, s = (math.exp(x) for x in (1.0, -1.0, 0.0))
    target = 0.8 * 0.8 + 0.2 * 0.9
    expected = (a * (target - 0.2) - l * 0.2) / (a + l + s)
    assert MIXTURE.change(values) == pytest.approx(expected)
    assert MIXTURE.target(values) == pytest.approx(target)
    far = values | {"distance": 2.0}
    assert MIXTURE.change(far) < 0 < MIXTURE.change(values)
    assert MIXTURE.spread(values) > MIXTURE.spread(values | {"distance": 0.0})
    assert MIXTURE.fractions({}) == MIXTURE.fractions(values)  # unknown counts as average


def test_a_feature_outside_the_fit_is_named_and_widens():
    inside, far = (predict(MODEL, make_features(0.2, 0.8, d), RUN) for d in (2.0, 5.0))
    assert not inside.out_of_range
    assert "distance is 5" in far.out_of_range[0]
    assert far.transfer == pytest.approx(inside.transfer)
    assert width(far) > width(inside)


def width(forecast):
    return forecast.distribution.quantile(0.95) - forecast.distribution.quantile(0.05)


def test_intervals_widen_with_sampling_error_and_stay_possible():
    sure, unsure = (
        predict(MODEL, make_features(0.2, 0.8, 0.1, half=half), RUN) for half in (0.02, 0.3)
    )
    assert width(unsure) > 1.5 * width(sure)
    assert unsure.change.low >= -0.5
    assert unsure.change.high <= 1.0


def test_the_interval_ends_where_the_accuracy_that_was_measured_may_be():
    """73 % (64 to 82) on 64 prompts: +27 points at most, it said; it was 64 % and gained 36."""
    features = make_features(0.73, 0.99, 0.2) | {"student_accuracy": estimate(0.73, 0.09)}
    change = predict(MODEL, features, RUN).change
    assert change.value <= 0.27
    assert 0.27 < change.high <= 0.36
    lost = make_features(0.73, 0.0, 0.2) | {"student_accuracy": estimate(0.73, 0.09)}
    assert -0.82 <= predict(MODEL, lost, RUN).change.low < -0.73


def test_views_that_disagree_widen():
    features = make_features(0.2, 0.8, 0.1)
    agreeing = predict(MODEL, features | pilot(change=0.09, kl_drop=0.2), RUN)
    opposed = predict(MODEL, features | pilot(change=-0.03, kl_drop=0.2), RUN)
    assert width(opposed) > width(agreeing)
    assert opposed.disagrees
    assert not agreeing.disagrees
    assert opposed.change.value < agreeing.change.value


def test_growth_is_linear_for_a_slow_run_and_one_for_a_run_that_has_arrived():
    assert growth(0.05, 1e-6) == pytest.approx(20, rel=1e-3)
    assert growth(0.5, 50.0) == pytest.approx(1.0)
    assert growth(1.0, 0.7) == pytest.approx(1.0)


@pytest.mark.parametrize("kl_drop", [0.01, 0.1, 0.6])
def test_more_of_a_helpful_pilot_predicts_more(kl_drop):
    features = make_features(0.2, 0.8, 0.3)
    changes = [
        predict(MODEL, features | pilot(change=change, kl_drop=kl_drop), RUN).change.value
        for change in (-0.1, -0.02, 0.0, 0.02, 0.1)
    ]
    assert np.all(np.diff(changes) >= -1e-12)


def test_a_stretch_that_leaves_the_teacher_counts_less():
    """At the raised rate the student broke; at the run's own it would not."""
    measured = {"stretch_path": estimate(0.4), "stretch_resampled": estimate(-0.3)}

    def added(kl_drop):
        features = make_features(0.4, 0.9, 0.5) | pilot() | measured
        features["stretch_kl_drop"] = estimate(kl_drop)
        return estimate_views(MODEL.mixture, features)["stretch"].added

    efolds = -math.log(1 - 0.1) / 0.05
    expected = 1 - math.exp(-efolds * 0.4)
    plain = added(expected)
    assert added(0.9) == plain  # more than expected is as good
    assert added(expected - 0.3) == pytest.approx(plain + 0.3)
    assert added(-20.0) == 1.0


def part(path, change, half=0.03):
    return {"part_path": estimate(path, 0.0), "part_resampled": estimate(change, half)}


def test_a_part_of_the_run_says_more_than_its_first_steps():
    model = load_model()
    features = make_features(0.2, 0.8, 0.3) | pilot(change=0.0)
    before = predict(model, features, RUN)
    for change in (-0.15, 0.4):
        after = predict(model, features | part(0.5, change), RUN)
        assert abs(after.change.value - change) < 0.12 < abs(before.change.value - change)
        assert after.change.high - after.change.low < before.change.high - before.change.low
    changes = [
        predict(model, features | part(path, change), RUN).change.value
        for path in (0.25, 0.5)
        for change in (-0.1, 0.0, 0.1, 0.2, 0.3)
    ]
    assert np.all(np.diff(changes[:5]) > 0)
    assert np.all(np.diff(changes[5:]) > 0)


def test_a_part_counts_for_runs_of_which_it_is_a_fifth():
    """As in the fit: of a run five times as long nothing was fitted."""
    features = make_features(0.2, 0.8, 0.3) | pilot() | part(0.5, 0.3)
    views = [estimate_views(MODEL.mixture, features, ratio) for ratio in (1.0, 2.0, 2.4, 2.6)]
    assert ["part" in each for each in views] == [True, True, True, False]
    assert views[1]["part"].change > views[0]["part"].change > 0.3


ANSWERS = {"offpolicy_kl": 0.68, "teacher_length": 19.0, "pilot_off_gain": 0.67,
           "pilot_path": 0.15, "pilot_kl_drop": 0.7}  # fmt: skip


def test_reach_is_the_probability_of_a_whole_answer_of_the_teacher():
    """By enumeration: a teacher's 19 tokens, each of which loses .68 nats under the student."""
    per_token = np.linspace(0.08, 1.28, 19)
    assert per_token.mean() == pytest.approx(0.68)
    now, half, there = (math.prod(np.exp(-left * per_token)) for left in (1.0, 0.5, 0.0))
    assert reached(ANSWERS, 1.0) == 0.0
    assert reached(ANSWERS, 0.0) == 1.0
    assert reached(ANSWERS, 0.5) == pytest.approx((half - now) / (there - now))
    assert 0 <= reached(ANSWERS | {"offpolicy_kl": 0.0}, 0.3) <= 1


def test_reach_follows_the_speed_of_the_pilot_and_the_rates_of_a_proposed_run():
    left = (1 - 0.67) ** (1 / 0.15)
    assert derived_features(ANSWERS)["reach"] == pytest.approx(reached(ANSWERS, left))
    shorter = derived_features(ANSWERS, ratio=0.5)["reach"]
    assert shorter == pytest.approx(reached(ANSWERS, left**0.5))
    assert shorter < derived_features(ANSWERS)["reach"]
    unknown = {name: v for name, v in ANSWERS.items() if name != "offpolicy_kl"}
    assert "reach" not in derived_features(unknown)


def test_the_first_right_answers_of_a_student_that_gives_none_are_a_small_part_of_what_follows():
    """SmolLM2 went from 0 to .71; its pilot had taken 70 % of the KL and brought .055."""
    extra = {name: estimate(value, 0.0) for name, value in ANSWERS.items()}
    unable = make_features(0.0, 0.94, 0.7) | extra | {"pilot_resampled": estimate(0.055, 0.045)}
    views = estimate_views(MIXTURE, unable)
    assert views["pilot"].change > 0.5
    assert views["pilot"].sampling > 0.3  # and it is known to be a guess
    able = unable | {"student_accuracy": estimate(0.5)}
    assert estimate_views(MIXTURE, able)["pilot"].change < 0.1
    none = unable | {"pilot_off_gain": estimate(0.0, 0.0)}
    assert estimate_views(MIXTURE, none)["pilot"].change <= 0.055 * MAX_GROWTH


def test_a_part_of_the_run_of_such_a_student_is_extrapolated_as_in_the_fit():
    """After half of a run that lowered accuracy by 8 points it predicted a rise of 55."""
    extra = {name: estimate(value, 0.0) for name, value in ANSWERS.items()}
    unable = make_features(0.15, 1.0, 0.7) | extra | part(0.5, -0.08)
    unable |= {"part_off_gain": estimate(0.2, 0.0), "pilot_resampled": estimate(0.0, 0.01)}
    view = estimate_views(MIXTURE, unable)["part"]
    efolds = derived_features({name: e.value for name, e in unable.items()})["efolds"]
    assert view.change == pytest.approx(-0.08 * growth(0.5, efolds))
    assert predict(load_model(), unable, RUN).change.value < 0.05


def test_a_longer_run_goes_further_in_the_direction_of_its_pilot():
    for change, sign in ((0.002, 1), (-0.002, -1)):
        features = make_features(0.2, 0.8, 0.3) | pilot(change=change, kl_drop=0.02)
        lengths = [replace(RUN, steps=steps) for steps in (20, 80, 320)]
        views = [predict(MODEL, features, RUN, run).views["pilot"] for run in lengths]
        assert np.all(np.diff(views) * sign > 0)
        assert predict(MODEL, features, RUN, RUN) == predict(MODEL, features, RUN)


def test_monotone_in_what_must_be_monotone():
    def value(**changes):
        features = make_features(0.2, 0.8, 0.5) | {n: estimate(v) for n, v in changes.items()}
        return predict(MODEL, features, RUN).change.value

    assert value(weighted_teacher_accuracy=0.9) > value() > value(weighted_teacher_accuracy=0.6)
    assert value(distance=0.1) > value() > value(distance=1.5)


def test_probabilities_agree_with_the_interval():
    forecast = predict(MODEL, make_features(0.2, 0.8, 0.5), RUN)
    distribution = forecast.distribution
    for level in (0.05, 0.25, 0.5, 0.95):
        assert distribution.below(distribution.quantile(level)) == pytest.approx(level)
    assert forecast.rises == pytest.approx(1 - distribution.below(0.0))
    assert 0.01 <= forecast.rises <= 0.99
    sure = predict(MODEL, make_features(0.2, 0.9, 0.0), RUN)
    assert sure.rises == 0.99
    assert sure.recovers_half > 0.9


def test_without_answers_nothing_is_predicted():
    forecast = predict(MODEL, {"distance": estimate(0.1)}, RUN)
    assert forecast.change is None
    assert forecast.rises is None
    assert forecast.transfer > 0.5


def test_numbers_that_are_not_known_are_left_out():
    features = make_features(0.2, 0.8, 0.1) | pilot()
    features["pilot_kl_drop"] = Estimate(math.nan, math.nan, math.nan, 4)
    forecast = predict(MODEL, features, RUN)
    assert set(forecast.views) == {"distance"}
    assert forecast.efolds is None


def test_the_shipped_model_reads_and_is_monotone():
    model = load_model()
    assert model_of_record(json.loads(json.dumps(asdict(model)))) == model
    base = {"student_accuracy": 0.2, "teacher_accuracy": 0.9, "weighted_teacher_accuracy": 0.9}
    near, far = (
        base | {t.name: t.high if (t.adopts > t.loses) == good else t.low
                for t in model.mixture.terms}
        for good in (True, False)
    )  # fmt: skip
    assert model.mixture.fractions(near)[0] > 0.8
    assert model.mixture.fractions(far)[0] < 0.3
    for combination in model.combinations:
        assert min(combination.errors.values()) > 0
        assert list(combination.quantiles) == sorted(combination.quantiles)


def test_views_are_weighed_by_their_errors():
    combination = MODEL.combinations[1]
    sure, unsure = View(0.4, 0.01, 0.0), View(0.0, 0.5, 0.0)
    for views, expected in (({"distance": sure, "pilot": unsure}, 0.4),
                            ({"distance": unsure, "pilot": sure}, 0.4)):  # fmt: skip
        mean, scale = combination.combine(views)
        assert mean == pytest.approx(expected, abs=0.03)
        assert scale > 0.05
    grown = {"distance": sure, "pilot": View(-0.4, 0.01, 0.38)}
    assert combination.combine(grown)[0] > 0.2  # mostly extrapolated


def test_answers_sampled_again_are_trusted_where_weights_are_not():
    """At a rate that tears a student apart, reweighting said +65 points where -19 were measured."""
    torn = {
        "pilot_change": estimate(0.65, 0.05),
        "pilot_ess": estimate(0.01, 0.0),
        "pilot_resampled": estimate(-0.19, 0.04),
    }
    change, _ = pilot_change(torn)
    assert change < -0.15
    calm = torn | {"pilot_change": estimate(0.06, 0.01), "pilot_ess": estimate(0.95, 0.0)}
    change, error = pilot_change(calm)
    assert 0.03 < change < 0.07
    assert error < 0.01
    assert pilot_change({}) is None
