"""Fitting the prospect on outcomes of the lab: least squares, errors from what is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import optimize

from opd.recipes.check.forecast import ForecastModel, Term
from opd_lab.calibration.outcomes import Outcome

RIDGE = 0.01  # on standardised weights: keeps a feature that says little from saying much
LEVEL = 0.9
NOISES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)


def values(outcome: Outcome) -> dict[str, float]:
    """The probe's numbers, without intervals."""
    return {name: e.value for name, e in outcome.probe.items()}


def fit(outcomes: Sequence[Outcome], names: Sequence[str], *, fitted_on: str = "") -> ForecastModel:
    """The model whose weights foretell accuracy after training best, and how wrong it is elsewhere.

    Args:
        outcomes: pairs of several worlds and seeds.
        names: features.
        fitted_on: in words.
    """
    model = _weights(outcomes, names)
    errors, scales = [], []
    for kind in (_world_and_seed, _world):  # a new seed of a known world, and a new world
        for left_out in sorted({kind(o) for o in outcomes}):
            inside = [o for o in outcomes if kind(o) != left_out]
            partial = _weights(inside, names) if inside else model
            for o in outcomes:
                if kind(o) == left_out:
                    errors.append(abs(partial.accuracy_after(values(o)) - o.after))
                    scales.append((partial.transfer(values(o)), _apart(partial, o)))
    spread, floor, noise = _spread(np.array(errors), scales)
    return replace(model, spread=spread, floor=floor, noise=noise, fitted_on=fitted_on)


def _world_and_seed(outcome: Outcome) -> str:
    return f"{outcome.pair.world} {outcome.pair.seed}"


def _world(outcome: Outcome) -> str:
    return outcome.pair.world


def _weights(outcomes: Sequence[Outcome], names: Sequence[str]) -> ForecastModel:
    table = np.array([[values(o)[n] for n in names] for o in outcomes]).reshape(len(outcomes), -1)
    terms = [
        Term(n, 0.0, float(x.mean()), float(x.std()) or 1.0, float(x.min()), float(x.max()))
        for n, x in zip(names, table.T, strict=True)
    ]
    after = np.array([o.after for o in outcomes])
    teacher, student = (
        np.array([values(o)[n] for o in outcomes])
        for n in ("weighted_teacher_accuracy", "student_accuracy")
    )
    standard = np.array(
        [[t.standardise(x) for t, x in zip(terms, row, strict=True)] for row in table]
    )
    standard = standard.reshape(len(outcomes), -1)

    def residuals(w: np.ndarray) -> np.ndarray:
        s = 1 / (1 + np.exp(-(w[0] + standard @ w[2:])))
        told = s * teacher + (1 - s) * w[1] * student
        return np.concatenate([told - after, RIDGE**0.5 * w[2:]])

    start = np.concatenate([[1.0, 0.3], np.zeros(len(names))])
    low = np.concatenate([[-20.0, 0.0], np.full(len(names), -20.0)])
    high = np.concatenate([[20.0, 1.0], np.full(len(names), 20.0)])
    found = optimize.least_squares(residuals, start, bounds=(low, high)).x
    fitted = tuple(replace(t, weight=float(w)) for t, w in zip(terms, found[2:], strict=True))
    return ForecastModel(float(found[0]), float(found[1]), fitted, 1.0, 0.02, 0.0, "")


def _apart(model: ForecastModel, outcome: Outcome) -> float:
    v = values(outcome)
    return abs(v["weighted_teacher_accuracy"] - model.keep * v["student_accuracy"])


def _spread(
    errors: np.ndarray, scales: Sequence[tuple[float, float]]
) -> tuple[float, float, float]:
    """Scale of the errors, and the quantile that holds `LEVEL` of them, a little more for few.

    The floor is fixed; how much more an undecided share errs is chosen so that the normalised
    errors are least uneven between decided and undecided pairs.
    """
    undecided = np.array([apart * 4 * s * (1 - s) for s, apart in scales])
    floor = float(np.median(errors)) or 0.01
    rank = min(1.0, math.ceil(LEVEL * (len(errors) + 1)) / len(errors))

    def normal(noise: float) -> float:
        z = np.log((errors + 0.005) / (floor + noise * undecided))
        return abs(float(np.corrcoef(z, undecided)[0, 1])) if undecided.std() else 0.0

    noise = min(NOISES, key=normal)
    spread = float(np.quantile(errors / (floor + noise * undecided), rank))
    return spread, floor, noise
