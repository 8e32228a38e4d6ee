"""Verdicts, reasons and advice of a check that has made half of the run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opd.recipes.check.advice import find_changes
from opd.recipes.check.forecast import predict
from opd.recipes.check.forecast_model import load_model
from opd.recipes.check.reasons import explain
from opd.recipes.check.verdict import judge
from support.check_features import RUN, estimate, make_features, pilot


def half(change, **more):
    return {
        "part_steps": estimate(40, 0),
        "part_path": estimate(0.5, 0.0),
        "part_resampled": estimate(change, 0.03),
        **more,
    }


@pytest.mark.parametrize("change", [-0.05, 0.0, 0.03])
def test_no_run_is_advised_whose_forecast_would_leave_out_half_of_this_one(change):
    """After -5 points four times the steps were advised, "predicted change then +45.5"."""
    features = make_features(0.2, 0.8, 0.3) | pilot(0.05, 0.02, 0.02) | half(change)
    model = load_model()
    assert find_changes(model, features, RUN) == []
    without = {name: e for name, e in features.items() if not name.startswith("part_")}
    assert predict(model, without, replace(RUN, steps=320)).change is not None


def test_half_of_a_run_outweighs_a_rise_in_its_first_steps():
    """The verdict was not known, since the pilot had raised what half of the run lowered."""
    rise = {"pilot_resampled": estimate(0.03, 0.02)}
    features = make_features(0.2, 0.8, 0.3) | pilot(0.05, 0.0, 0.1) | rise | half(-0.1)
    forecast = predict(load_model(), features, RUN)
    assert judge(forecast, features) == "don't"
    assert not any("raise accuracy" in r.text for r in explain("don't", forecast, features, RUN))


def test_refused_steps_in_half_of_a_run_are_said_and_settle_nothing():
    features = make_features(0.2, 0.8, 0.3) | pilot(0.05, 0.05, 0.1) | half(0.4)
    model = load_model()
    assert judge(predict(model, features, RUN), features) == "go"
    broken = features | {"part_refused": estimate(3 / 40, 0.0)}
    forecast = predict(model, broken, RUN)
    assert judge(forecast, broken) == "not known"
    texts = [reason.text for reason in explain("not known", forecast, broken, RUN)]
    assert any("3 of the run's first 40 steps were not made" in text for text in texts)
