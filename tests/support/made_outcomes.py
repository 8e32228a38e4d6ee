"""Made-up outcomes of runs, for judging forecasts."""

from __future__ import annotations

import numpy as np

from opd_lab.pairs.records import Outcome
from support.check_features import RUN, make_features


def make_outcome(world, index, rng, *, change=None, teacher=None):
    """A run of a world in which close teachers are followed."""
    before = float(rng.uniform(0.1, 0.5))
    teacher = float(rng.uniform(0.2, 1.0)) if teacher is None else teacher
    distance = float(rng.uniform(0, 2))
    adopted = 1 / (1 + np.exp(6 * (distance - 1)))
    real = adopted * (teacher - before) if change is None else change
    after = float(np.clip(before + real + rng.normal(0, 0.01), 0, 1))
    features = make_features(before, teacher, distance, continuation_gain=0.3 * real)
    facts = {"block": "fit", "index": index, "world": world, "student": "a", "teacher": "b"}
    return Outcome(facts, features, RUN, before, after, teacher)
