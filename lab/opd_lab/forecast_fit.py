"""Fitting the forecast of `opd check`: least squares, and errors on worlds that were left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize

from opd.core.stats import Estimate
from opd.recipes.check.forecast import (
    DISTANCE,
    PART,
    PILOT,
    STRETCH,
    derived_features,
    estimate_views,
)
from opd.recipes.check.forecast_model import Combination, ForecastModel, Mixture, Term, is_known

TERMS = ("log_distance", "tilt_gain", "continuation_gain", "log_efolds", "slips", "reach")
VIEWS = ((DISTANCE,), (DISTANCE, PILOT), (DISTANCE, PILOT, STRETCH))
PART_VIEWS = (DISTANCE, PILOT, PART)
RIDGE = 0.02  # on standardised weights: keeps an uninformative feature from a large weight
MIN_ROWS = 20  # of a set of views, to weigh and judge it
LEVELS = (0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.995)
MIN_ERROR = 0.015  # accuracy: a held-out set is no more exact than that
START_ERRORS = {
    DISTANCE: 0.03,
    PILOT: 0.05,
    STRETCH: 0.05,
    PART: 0.03,
}  # before any errors were seen
START_ADDED = {DISTANCE: 0.4, PILOT: 0.6, STRETCH: 0.6, PART: 0.6}
START_DISAGREEMENT = 0.2
NORMAL = ((0.005, -2.58), (0.05, -1.645), (0.5, 0.0), (0.95, 1.645), (0.995, 2.58))
PRIOR = 3.0  # rows that the starting values are worth


@dataclass(frozen=True)
class FitRow:
    """One run and what was measured before it.

    Attributes:
        features: of the pair, with those of a pilot if there was one.
        before: held-out accuracy before training.
        after: after it.
        teacher: the teacher's.
        world: left out together.
        training: what lengths of the same training share; None: nobody else's.
    """

    features: Mapping[str, Estimate]
    before: float
    after: float
    teacher: float
    world: str
    training: tuple[str, int] | None = None

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
    part_rows: Sequence[FitRow] = (),
) -> ForecastModel:
    """The model that predicts accuracy best, with its errors on worlds that it was not fitted on.

    Args:
        rows: runs of several worlds.
        terms: features of the view `distance`.
        fitted_on: description of the rows.
        views: sets of views to weigh; one that fewer than `MIN_ROWS` rows have is left out.
        part_rows: runs of which a part was made before, to weigh it beside the other views; nothing
            else is fitted on them.
    """
    mixtures = _fit_left_out(rows, terms)
    full = fit_means(rows, terms, views)
    combinations = [_with_errors(c, rows, mixtures) for c in full.combinations]
    if len(part_rows) >= MIN_ROWS:
        combinations.append(_with_errors(_start(PART_VIEWS), part_rows, mixtures))
    return replace(full, combinations=tuple(combinations), fitted_on=fitted_on)


def fit_means(
    rows: Sequence[FitRow], terms: Sequence[str], views: Sequence[Sequence[str]] = VIEWS
) -> ForecastModel:
    """The model without its errors."""
    mixture = _fit_mixture(rows, terms)
    combinations = []
    for names in views:
        usable = [r for r in rows if set(names) <= estimate_views(mixture, r.features).keys()]
        if len(usable) >= MIN_ROWS or len(names) == 1:
            combinations.append(_start(names))
    return ForecastModel(mixture, tuple(combinations), "")


def _start(names: Sequence[str]) -> Combination:
    errors, added = ({n: start[n] for n in names} for start in (START_ERRORS, START_ADDED))
    return Combination(errors, added, START_DISAGREEMENT, NORMAL)


def _fit_left_out(rows: Sequence[FitRow], terms: Sequence[str]) -> dict[str, Mixture]:
    """By world: a mixture fitted on the other worlds; on itself, if it is the only one."""
    worlds = {row.world for row in rows}
    return {
        world: _fit_mixture([r for r in rows if r.world != world or len(worlds) == 1], terms)
        for world in sorted(worlds)
    }


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
    predict_changes = _vectorise(terms, rows)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        predicted = predict_changes(parameters)
        return np.concatenate([scale * (predicted - changes), RIDGE**0.5 * parameters[3:]])

    start = np.concatenate([[1.0, -2.0, 0.8], np.zeros(2 * len(terms))])
    low = np.concatenate([[-20.0, -20.0, 0.0], np.full(2 * len(terms), -20.0)])
    high = np.concatenate([[20.0, 20.0, 1.0], np.full(2 * len(terms), 20.0)])
    best = optimize.least_squares(residuals, start, bounds=(low, high)).x
    adopts, loses, likely, *weights = best.tolist()
    pairs = zip(terms, weights[: len(terms)], weights[len(terms) :], strict=True)
    fitted = tuple(replace(term, adopts=x, loses=y) for term, x, y in pairs)
    return Mixture(adopts, loses, likely, fitted)


def _vectorise(terms: Sequence[Term], rows: Sequence[FitRow]) -> Callable[[np.ndarray], np.ndarray]:
    """`Mixture.change` of all rows at once, as a function of a mixture's parameters.

    Parameters are adopts, loses, likely, then the terms' weights for adopting and for losing.
    """
    values = [row.values for row in rows]
    standard = np.array(
        [[t.standardise(v[t.name]) if is_known(v, t.name) else 0.0 for t in terms] for v in values]
    ).reshape(len(rows), -1)
    before, plain, weighted = (
        np.array([v[name] for v in values])
        for name in ("student_accuracy", "teacher_accuracy", "weighted_teacher_accuracy")
    )

    def changes(parameters: np.ndarray) -> np.ndarray:
        adopts, loses, likely = parameters[:3]
        weights = parameters[3:].reshape(2, -1)
        logits = np.stack(
            [adopts + standard @ weights[0], loses + standard @ weights[1], np.zeros(len(rows))]
        )
        fractions = np.exp(logits - logits.max(0))
        fractions /= fractions.sum(0)
        target = likely * weighted + (1 - likely) * plain
        change: np.ndarray = fractions[0] * (target - before) - fractions[1] * before
        return change

    return changes


def _with_errors(
    combination: Combination, rows: Sequence[FitRow], mixtures: Mapping[str, Mixture]
) -> Combination:
    """The combination with errors, and their quantiles, of mixtures that left a world out."""
    names, cases, trainings = list(combination.errors), [], set()
    for row in rows:
        views = estimate_views(mixtures[row.world], row.features)
        if set(names) <= views.keys():
            cases.append((views, row.change))
            trainings.add(row.training or id(row))
    start = np.array(_parameters(combination))

    def standardise(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        made = _of_parameters(names, np.exp(parameters).tolist())
        combined = [(made.combine(views), change) for views, change in cases]
        errors = np.array([change - mean for (mean, _), change in combined])
        return errors, np.array([scale for (_, scale), _ in combined])

    def loss(parameters: np.ndarray) -> float:  # of a Laplace distribution: outliers do not rule
        errors, scales = standardise(parameters)
        prior = PRIOR / len(cases) * float(np.square(parameters - start).sum())
        return float(np.mean(np.log(scales) + np.abs(errors) / scales)) + prior

    options = {"maxfev": 60 * len(start), "xatol": 0.02, "fatol": 1e-3}
    best = optimize.minimize(loss, start, method="Nelder-Mead", options=options).x
    errors, scales = standardise(best)
    # A little further out than the sample's own quantiles: it is finite, and lengths of the same
    # training count once.
    count = len(trainings)
    levels = [min(max((x * (count + 1) - 0.5) / count, 0.0), 1.0) for x in LEVELS]
    values = np.maximum.accumulate(np.quantile(errors / scales, levels))
    quantiles = tuple(zip(LEVELS, values.tolist(), strict=True))
    return replace(_of_parameters(names, np.exp(best).tolist()), quantiles=quantiles)


def _parameters(combination: Combination) -> list[float]:
    """Logarithms of what is fitted."""
    values = [*combination.errors.values(), *combination.added.values(), combination.disagreement]
    return [math.log(value) for value in values]


def _of_parameters(names: Sequence[str], values: Sequence[float]) -> Combination:
    """The inverse, from the values themselves."""
    count = len(names)
    errors = {n: max(x, MIN_ERROR) for n, x in zip(names, values[:count], strict=True)}
    added = dict(zip(names, values[count : 2 * count], strict=True))
    return Combination(errors, added, values[-1], NORMAL)
