"""The fitted model behind a forecast: terms of the view `distance`, weights of views, errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

MODEL_FILE = "forecast.json"
CERTAIN = 0.99  # no probability is closer to 0 or 1 than this


@dataclass(frozen=True)
class Term:
    """One feature of the view `distance`.

    Attributes:
        name: of the feature, or of `derived_features`.
        adopts: weight of its standardised value in the logit of the fraction adopted.
        loses: in that of the fraction lost.
        centre: subtracted first.
        scale: divided by then.
        low: smallest value in the fit.
        high: largest value in the fit.
    """

    name: str
    adopts: float
    loses: float
    centre: float
    scale: float
    low: float
    high: float

    def standardise(self, value: float) -> float:
        """The value in units of the fit's spread, clipped to the range of the fit."""
        return (min(max(value, self.low), self.high) - self.centre) / self.scale


@dataclass(frozen=True)
class Mixture:
    """The view `distance`: what happens to a student, as fractions of three outcomes.

    Attributes:
        adopts: logit of the fraction that adopts the teacher's behaviour, for average features.
        loses: logit of the fraction whose accuracy is lost.
        likely: weight of the teacher's answers that are likely under the student in the target.
        terms: the features.
    """

    adopts: float
    loses: float
    likely: float
    terms: tuple[Term, ...]

    def fractions(self, values: Mapping[str, float]) -> tuple[float, float]:
        """(adopted, lost), the rest stays as it is; unknown features count as average."""
        known = [(t, t.standardise(values[t.name])) for t in self.terms if is_known(values, t.name)]
        logits = (
            self.adopts + sum(t.adopts * z for t, z in known),
            self.loses + sum(t.loses * z for t, z in known),
        )
        top = max(0.0, *logits)
        adopts, loses, stays = (math.exp(x - top) for x in (*logits, 0.0))
        total = adopts + loses + stays
        return adopts / total, loses / total

    def target(self, values: Mapping[str, float]) -> float:
        """Accuracy of a student that has adopted everything."""
        plain, weighted = values["teacher_accuracy"], values["weighted_teacher_accuracy"]
        return self.likely * weighted + (1 - self.likely) * plain

    def change(self, values: Mapping[str, float]) -> float:
        """Predicted change of accuracy."""
        adopts, loses = self.fractions(values)
        before = values["student_accuracy"]
        return adopts * (self.target(values) - before) - loses * before

    def spread(self, values: Mapping[str, float]) -> float:
        """Standard deviation of the three outcomes: large where it is undecided which comes."""
        adopts, loses = self.fractions(values)
        before = values["student_accuracy"]
        outcomes = (self.target(values) - before, -before, 0.0)
        mean = adopts * outcomes[0] + loses * outcomes[1]
        weights = (adopts, loses, 1 - adopts - loses)
        squares = (w * (x - mean) ** 2 for w, x in zip(weights, outcomes, strict=True))
        return math.sqrt(sum(squares))


@dataclass(frozen=True)
class View:
    """One view of the change of accuracy.

    Attributes:
        change: at the end of the run.
        sampling: standard error of what it was measured from.
        added: what extrapolation, or an undecided outcome, adds to its error: for `distance` the
            spread of the mixture, for the others that by which a typical change was grown.
    """

    change: float
    sampling: float
    added: float


@dataclass(frozen=True)
class Combination:
    """How views are weighed against each other, by their errors, and how wrong that was.

    Attributes:
        errors: smallest standard error, by view.
        added: by view, error per unit of `View.added`.
        disagreement: error per unit of distance between the views.
        quantiles: (level, error / error scale) of signed errors (outcome - forecast), rising.
    """

    errors: Mapping[str, float]
    added: Mapping[str, float]
    disagreement: float
    quantiles: tuple[tuple[float, float], ...]

    def variances(self, views: Mapping[str, View]) -> dict[str, float]:
        """Squared error of each view that is used."""
        return {
            name: error**2 + views[name].sampling ** 2 + (self.added[name] * views[name].added) ** 2
            for name, error in self.errors.items()
        }

    def combine(self, views: Mapping[str, View]) -> tuple[float, float]:
        """Mean weighted by precision, and error scale: their errors are not independent."""
        variances = self.variances(views)
        total = sum(1 / variance for variance in variances.values())
        weights = {name: 1 / variance / total for name, variance in variances.items()}
        changes = [views[name].change for name in weights]
        mean = sum(weight * views[name].change for name, weight in weights.items())
        square = sum(weight * variances[name] for name, weight in weights.items())
        distance = max(changes) - min(changes)
        return mean, math.hypot(math.sqrt(square), self.disagreement * distance)

    def quantile(self, level: float) -> float:
        """Of the standardised errors."""
        levels, values = zip(*self.quantiles, strict=True)
        return float(np.interp(level, levels, values))

    def below(self, z: float) -> float:
        """Probability of a standardised error below z."""
        levels, values = zip(*self.quantiles, strict=True)
        return min(max(float(np.interp(z, values, levels)), 1 - CERTAIN), CERTAIN)


@dataclass(frozen=True)
class ForecastModel:
    """The fitted model.

    Attributes:
        mixture: the view `distance`.
        combinations: for each set of views that may be available; `distance` alone is the first.
        fitted_on: what it was fitted on, in words.
    """

    mixture: Mixture
    combinations: tuple[Combination, ...]
    fitted_on: str

    def combination(self, views: Mapping[str, View]) -> Combination:
        """The one that uses most of the views."""
        usable = [c for c in self.combinations if set(c.errors) <= set(views)]
        return max(usable, key=lambda c: len(c.errors))


def load_model() -> ForecastModel:
    """The model that ships with the package."""
    text = (files("opd.recipes.check") / MODEL_FILE).read_text("utf-8")
    return model_of_record(json.loads(text))


def model_of_record(record: Mapping[str, object]) -> ForecastModel:
    """A model from its JSON."""
    mixture = dict(record["mixture"])  # type: ignore[call-overload]
    mixture["terms"] = tuple(Term(**term) for term in mixture["terms"])
    combinations = tuple(
        Combination(**(each | {"quantiles": tuple((a, b) for a, b in each["quantiles"])}))
        for each in record["combinations"]  # type: ignore[attr-defined]
    )
    return ForecastModel(Mixture(**mixture), combinations, str(record["fitted_on"]))


def is_known(values: Mapping[str, float], name: str) -> bool:
    """Whether a number was measured."""
    return name in values and math.isfinite(values[name])
