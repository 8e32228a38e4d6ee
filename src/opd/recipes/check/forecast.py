"""Predicted accuracy after training, from a probe: a small model fitted on outcomes of the lab.

    after = s * weighted_teacher_accuracy + (1 - s) * keep * student_accuracy,    s = sigmoid(w . z)

`weighted_teacher_accuracy` is the teacher's accuracy weighted by the student's likelihood, s the
transfer (the fraction of the teacher's behaviour that the student adopts), z a few measures of
compatibility. A student that adopts nothing does not stay where it is: pulled towards states that
it cannot continue from, it keeps only the fraction `keep` of its accuracy.
Fitted by `opd lab calibrate` on whole worlds and seeds; docs/check.md judges it on others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from opd.core.stats import Estimate

SLACK = 0.1  # how far outside the fitted range a feature may lie, as a fraction of that range
MODEL_FILE = "forecast.json"


@dataclass(frozen=True)
class Term:
    """One feature of the model.

    Attributes:
        name: of the feature.
        weight: of its standardised value.
        centre: subtracted first.
        scale: divided by then.
        low: smallest value in the fit.
        high: largest value in the fit.
    """

    name: str
    weight: float
    centre: float
    scale: float
    low: float
    high: float

    def standardise(self, value: float) -> float:
        """The value in units of the fit's spread, clipped to the range of the fit."""
        return (min(max(value, self.low), self.high) - self.centre) / self.scale


@dataclass(frozen=True)
class ForecastModel:
    """The fitted model.

    Attributes:
        bias: of the transfer's logit.
        keep: fraction of its accuracy that a student without any transfer keeps.
        terms: the features.
        spread: 90 % quantile of |error| / error scale.
        floor: smallest error scale.
        noise: error scale at s = 1/2 per unit of accuracy between the two ends of the formula.
        fitted_on: what it was fitted on, in words.
    """

    bias: float
    keep: float
    terms: tuple[Term, ...]
    spread: float
    floor: float
    noise: float
    fitted_on: str

    def transfer(self, values: Mapping[str, float]) -> float:
        """s: the fraction of the teacher's behaviour that will be adopted, 0 to 1."""
        known = [t for t in self.terms if t.name in values]  # the others count as average
        logit = self.bias + sum(t.weight * t.standardise(values[t.name]) for t in known)
        return 1 / (1 + math.exp(-logit))

    def accuracy_after(self, values: Mapping[str, float]) -> float:
        """Accuracy after training."""
        s = self.transfer(values)
        teacher, student = values["weighted_teacher_accuracy"], values["student_accuracy"]
        return s * teacher + (1 - s) * self.keep * student

    def error_scale(self, values: Mapping[str, float]) -> float:
        """The scale of errors for such a pair: largest where the transfer is undecided."""
        s = self.transfer(values)
        teacher, student = values["weighted_teacher_accuracy"], values["student_accuracy"]
        return self.floor + self.noise * abs(teacher - self.keep * student) * 4 * s * (1 - s)


@dataclass(frozen=True)
class Forecast:
    """What training of a pair is predicted to change.

    Attributes:
        transfer: fraction of the teacher's behaviour that the student adopts.
        change: accuracy change with its 90 % interval; None without answers.
        recovery: fraction of the accuracy gap recovered, 90 %; None without answers or a gap.
        out_of_range: features outside the range of the fit, in words.
    """

    transfer: float
    change: Estimate | None
    recovery: Estimate | None
    out_of_range: tuple[str, ...]


def load_model() -> ForecastModel:
    """The model that ships with the package."""
    text = (files("opd.recipes.check") / MODEL_FILE).read_text("utf-8")
    return model_of_record(json.loads(text))


def model_of_record(record: Mapping[str, object]) -> ForecastModel:
    """A model from its JSON."""
    terms = tuple(Term(**t) for t in record["terms"])  # type: ignore[attr-defined]
    return ForecastModel(**(dict(record) | {"terms": terms}))  # type: ignore[arg-type]


def predict(model: ForecastModel, features: Mapping[str, Estimate]) -> Forecast:
    """Predict what training will change.

    The interval combines two uncertainties: the model's errors on pairs it was not fitted on, and
    the probe's own sampling error of the weighted gap.

    Args:
        model: the fitted model.
        features: the numbers of the probe.
    """
    values = {name: e.value for name, e in features.items()}
    out_of_range = tuple(
        message
        for term in model.terms
        if term.name in values and (message := _out_of_range(term, values[term.name])) is not None
    )
    transfer = model.transfer(values)
    if "weighted_gap" not in features:
        return Forecast(transfer, None, None, out_of_range)
    change = model.accuracy_after(values) - values["student_accuracy"]
    model_error = model.spread * model.error_scale(values)
    weighted, gap = features["weighted_gap"], features["gap"]
    # 95 % half-width to 90 %
    sampling_error = transfer * (weighted.high - weighted.low) / 2 * 0.84
    half = math.hypot(model_error, sampling_error)
    low = max(change - half, -values["student_accuracy"])
    high = min(change + half, 1 - values["student_accuracy"])
    recovery = None
    if gap.low > 0:
        recovery = Estimate(change / gap.value, low / gap.value, high / gap.value, gap.n)
    return Forecast(transfer, Estimate(change, low, high, gap.n), recovery, out_of_range)


def _out_of_range(term: Term, value: float) -> str | None:
    slack = SLACK * (term.high - term.low)
    if term.low - slack <= value <= term.high + slack:
        return None
    return f"{term.name} is {value:.3g}; the lab's pairs had {term.low:.3g} to {term.high:.3g}"
