"""Fitting the forecast of `opd check`: least squares, and errors on worlds that were left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from opd.core.stats import Estimate
from opd.recipes.check.forecast import (
    DISTANCE,
    PILOT,
    STRETCH,
    derived_features,
    error_parts,
    estimate_views,
)
from opd.recipes.check.forecast_model import Combination, ForecastModel, Mixture, Term

TERMS = ("log_distance", "tilt_gain", "continuation_gain", "log_efolds", "slips")
VIEWS = ((DISTANCE,), (DISTANCE, PILOT), (DISTANCE, PILOT, STRETCH))
RIDGE = 0.02  # on standardised weights: keeps an uninformative feature from a large weight
MIN_ROWS = 20  # of a set of views, to weigh and judge it
LEVELS = (0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.995)
START = (0.03, 0.3, 0.3)  # floor, noise, disagreement
MIN_FLOOR = 0.015  # accuracy: a held-out set is no more exact than that


@dataclass(frozen=True)
class FitRow:
    """One run and what was measured before it.

    Attributes:
        features: of the pair, with those of a pilot if there was one.
        before: held-out accuracy before training.
        after: after it.
        teacher: the teacher's.
        world: left out together.
    """

    features: Mapping[str, Estimate]
    before: float
    after: float
    teacher: float
    world: str

    @property
    def change(self) -> float:
        """What is predicted."""
        return self.after - self.before

    @property
    def values(self) -> dict[str, float]:
        """Features without intervals, derived ones included."""
        values = {name: e.value for name, e in self.features.items()}
        return values | derived_features(values)


def fit_forecast(
    rows: Sequence[FitRow],
    terms: Sequence[str] = TERMS,
    *,
    fitted_on: str = "",
    views: Sequence[Sequence[str]] = VIEWS,
) -> ForecastModel:
    """The model that predicts accuracy best, with its errors on worlds that it was not fitted on.

    Args:
        rows: runs of several worlds.
        terms: features of the view `distance`.
        fitted_on: description of the rows.
        views: sets of views to weigh; one that fewer than `MIN_ROWS` rows have is left out.
    """
    full = fit_means(rows, terms, views)
    worlds = sorted({row.world for row in rows})
    left_out = {
        world: fit_means([r for r in rows if r.world != world], terms, views)
        if worlds[1:]
        else full
        for world in worlds
    }
    combinations = [_with_errors(c, rows, left_out) for c in full.combinations]
    return replace(full, combinations=tuple(combinations), fitted_on=fitted_on)


def fit_means(
    rows: Sequence[FitRow], terms: Sequence[str], views: Sequence[Sequence[str]] = VIEWS
) -> ForecastModel:
    """The model without its errors."""
    mixture = _fit_mixture(rows, terms)
    combinations = [_fit_weights(mixture, rows, names) for names in views]
    kept = tuple(c for c in combinations if c is not None)
    return ForecastModel(mixture, kept, "")


def _row_weights(rows: Sequence[FitRow]) -> np.ndarray:
    """Square roots of weights with which every world counts the same."""
    worlds = [row.world for row in rows]
    counts = np.array([worlds.count(world) for world in worlds], dtype=float)
    weights: np.ndarray = np.sqrt(counts.mean() / counts)
    return weights


def _fit_mixture(rows: Sequence[FitRow], names: Sequence[str]) -> Mixture:
    table = np.array([[row.values.get(name, np.nan) for name in names] for row in rows])
    table = table.reshape(len(rows), -1)
    terms = []
    for name, column in zip(names, table.T, strict=True):
        known = column[np.isfinite(column)]
        if len(known):
            ends = float(known.min()), float(known.max())
            spread = float(known.std()) or 1.0
            terms.append(Term(name, 0.0, 0.0, float(known.mean()), spread, *ends))
    changes, scale = np.array([row.change for row in rows]), _row_weights(rows)

    def mixture(parameters: np.ndarray) -> Mixture:
        adopts, loses, likely, *weights = parameters.tolist()
        pairs = zip(terms, weights[: len(terms)], weights[len(terms) :], strict=True)
        fitted = tuple(replace(term, adopts=a, loses=b) for term, a, b in pairs)
        return Mixture(adopts, loses, likely, fitted)

    values = [row.values for row in rows]

    def residuals(parameters: np.ndarray) -> np.ndarray:
        model = mixture(parameters)
        predicted = np.array([model.change(v) for v in values])
        return np.concatenate([scale * (predicted - changes), RIDGE**0.5 * parameters[3:]])

    start = np.concatenate([[1.0, -2.0, 0.8], np.zeros(2 * len(terms))])
    low = np.concatenate([[-20.0, -20.0, 0.0], np.full(2 * len(terms), -20.0)])
    high = np.concatenate([[20.0, 20.0, 1.0], np.full(2 * len(terms), 20.0)])
    return mixture(optimize.least_squares(residuals, start, bounds=(low, high)).x)


def _fit_weights(
    mixture: Mixture, rows: Sequence[FitRow], names: Sequence[str]
) -> Combination | None:
    """Weights of the views that add up to 1, none negative; None with too few rows."""
    usable = [row for row in rows if set(names) <= estimate_views(mixture, row.values).keys()]
    if len(usable) < MIN_ROWS and len(names) > 1:
        return None
    views = [estimate_views(mixture, row.values) for row in usable]
    table = np.array([[view[name] for name in names] for view in views])
    change = np.array([row.change for row in usable])
    scale = _row_weights(usable)
    heavy = 1e3 * scale.sum()  # makes the weights add up to 1
    weights, _ = optimize.nnls(
        np.vstack([scale[:, None] * table, np.full(len(names), heavy)]),
        np.append(scale * change, heavy),
    )
    shares = dict(zip(names, (weights / weights.sum()).tolist(), strict=True))
    return Combination(shares, *START, ((0.05, -1.645), (0.5, 0.0), (0.95, 1.645)))


def _with_errors(
    combination: Combination, rows: Sequence[FitRow], left_out: Mapping[str, ForecastModel]
) -> Combination:
    """The combination with the error scale and the quantiles of models that left a world out."""
    names = set(combination.weights)
    cases = []
    for row in rows:
        model = left_out[row.world]
        views = estimate_views(model.mixture, row.values)
        partial = next((c for c in model.combinations if set(c.weights) == names), None)
        if partial is not None and names <= views.keys():
            parts = error_parts(model.mixture, partial, row.features)
            cases.append((row.change - partial.mean(views), parts))
    errors = np.array([error for error, _ in cases])

    def scales(parameters: Sequence[float]) -> np.ndarray:
        floor, noise, disagreement = np.abs(parameters).tolist()
        scaled = replace(
            combination, floor=floor + MIN_FLOOR, noise=noise, disagreement=disagreement
        )
        return np.array([scaled.scale(*parts) for _, parts in cases])

    def loss(parameters: np.ndarray) -> float:  # of a Laplace distribution: outliers do not rule
        scale = scales(parameters.tolist())
        return float(np.mean(np.log(scale) + np.abs(errors) / scale))

    best = optimize.minimize(loss, START, method="Nelder-Mead", options={"maxfev": 150}).x.tolist()
    standardised = np.sort(errors / scales(best))
    count = len(errors)
    # A little further out than the sample's own quantiles: it is finite.
    levels = [min(max((x * (count + 1) - 0.5) / count, 0.0), 1.0) for x in LEVELS]
    values = np.quantile(standardised, levels)
    quantiles = tuple(zip(LEVELS, np.maximum.accumulate(values).tolist(), strict=True))
    return replace(with_scales(combination, best), quantiles=quantiles)


def with_scales(combination: Combination, parameters: Sequence[float]) -> Combination:
    """The combination with another floor (above `MIN_FLOOR`), noise and disagreement."""
    floor, noise, disagreement = (abs(x) for x in parameters)
    return replace(combination, floor=MIN_FLOOR + floor, noise=noise, disagreement=disagreement)
