"""Fitting the forecast to outcomes of the lab: least squares, errors from what is left out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import optimize

from opd.recipes.check.forecast import ForecastModel, Term
from opd_lab.calibration.outcomes import Outcome

RIDGE = 0.01  # on standardised weights: keeps an uninformative feature from a large weight
LEVEL = 0.9
NOISES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)


def fit(outcomes: Sequence[Outcome], names: Sequence[str], *, fitted_on: str = "") -> ForecastModel:
    """The model whose weights predict accuracy after training best, and its errors elsewhere.

    Args:
        outcomes: pairs of several worlds and seeds.
        names: features.
        fitted_on: description of the outcomes.
    """
    model = _fit_weights(outcomes, names)
    errors, transfers, ranges = [], [], []
    for group_of in (_world_and_seed, _world):  # a new seed of a known world, and a new world
        for group in sorted({group_of(o) for o in outcomes}):
            others = [o for o in outcomes if group_of(o) != group]
            partial = _fit_weights(others, names) if others else model
            for o in outcomes:
                if group_of(o) == group:
                    errors.append(abs(partial.accuracy_after(o.values) - o.after))
                    transfers.append(partial.transfer(o.values))
                    ranges.append(_range(partial, o))
    undecided = np.array([4 * s * (1 - s) * r for s, r in zip(transfers, ranges, strict=True)])
    spread, floor, noise = _fit_errors(np.array(errors), undecided)
    return replace(model, spread=spread, floor=floor, noise=noise, fitted_on=fitted_on)


def _world_and_seed(outcome: Outcome) -> str:
    return f"{outcome.pair.world} {outcome.pair.seed}"


def _world(outcome: Outcome) -> str:
    return outcome.pair.world


def _fit_weights(outcomes: Sequence[Outcome], names: Sequence[str]) -> ForecastModel:
    """The model without its errors."""
    table = np.array([[o.values[n] for n in names] for o in outcomes]).reshape(len(outcomes), -1)
    terms = [
        Term(n, 0.0, float(x.mean()), float(x.std()) or 1.0, float(x.min()), float(x.max()))
        for n, x in zip(names, table.T, strict=True)
    ]
    after = np.array([o.after for o in outcomes])
    teacher = np.array([o.values["weighted_teacher_accuracy"] for o in outcomes])
    student = np.array([o.values["student_accuracy"] for o in outcomes])
    features = np.array(
        [[t.standardise(x) for t, x in zip(terms, row, strict=True)] for row in table]
    ).reshape(len(outcomes), -1)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        bias, keep, weights = parameters[0], parameters[1], parameters[2:]
        transfer = 1 / (1 + np.exp(-(bias + features @ weights)))
        predicted = transfer * teacher + (1 - transfer) * keep * student
        return np.concatenate([predicted - after, RIDGE**0.5 * weights])

    start = np.concatenate([[1.0, 0.3], np.zeros(len(names))])
    low = np.concatenate([[-20.0, 0.0], np.full(len(names), -20.0)])
    high = np.concatenate([[20.0, 1.0], np.full(len(names), 20.0)])
    bias, keep, *weights = optimize.least_squares(residuals, start, bounds=(low, high)).x.tolist()
    fitted = tuple(replace(term, weight=w) for term, w in zip(terms, weights, strict=True))
    return ForecastModel(bias, keep, fitted, spread=1.0, floor=0.02, noise=0.0, fitted_on="")


def _range(model: ForecastModel, outcome: Outcome) -> float:
    """Predicted accuracy at full transfer, minus that at none; absolute."""
    values = outcome.values
    return abs(values["weighted_teacher_accuracy"] - model.keep * values["student_accuracy"])


def _fit_errors(errors: np.ndarray, undecided: np.ndarray) -> tuple[float, float, float]:
    """Spread, floor and noise of `ForecastModel`: quantile and scale of the errors.

    The floor is fixed; the noise is chosen so that the normalised errors are least correlated with
    how undecided the transfer is.

    Args:
        errors: absolute errors on pairs that were left out, (n,).
        undecided: error scale per unit of noise, (n,).
    """
    floor = float(np.median(errors)) or 0.01
    rank = min(1.0, math.ceil(LEVEL * (len(errors) + 1)) / len(errors))  # a little more for few

    def correlation(noise: float) -> float:
        log_errors = np.log((errors + 0.005) / (floor + noise * undecided))
        return abs(float(np.corrcoef(log_errors, undecided)[0, 1])) if undecided.std() else 0.0

    noise = min(NOISES, key=correlation)
    spread = float(np.quantile(errors / (floor + noise * undecided), rank))
    return spread, floor, noise
