"""A verdict and what would settle it, where little was measured or no more can be."""

from __future__ import annotations

from dataclasses import replace

from opd.recipes.check.advice import advise
from opd.recipes.check.forecast import predict
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
    (whole,) = texts(noisy | {"stretch_path": estimate(0.5)}, prompts=192)
    assert whole.startswith("To settle it: train a tenth of the steps")
    (whole,) = texts(noisy | {"stretch_path": estimate(0.5)}, prompts=40, most_prompts=40)
    assert whole.startswith("To settle it: train a tenth of the steps")
