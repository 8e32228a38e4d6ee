"""What training will come to, from a probe: a small model fitted on outcomes of the lab.

    after = s * taught + (1 - s) * keep * student,    s = sigmoid(w . z)

`taught` is the accuracy of those answers of the teacher that the student might write, s the share
of the teacher's way that the student takes over, z a few measures of compatibility. A student that
takes over nothing does not stay where it is: pulled towards states it cannot go on from, it keeps
only a part of its skill.
Fitted by `opd lab calibrate` on whole worlds and seeds; docs/check.md judges it on others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from opd.core.stats import Estimate

SLACK = 0.1  # how far beyond the seen range a feature may lie, as a share of that range
MODEL = "forecast.json"


@dataclass(frozen=True)
class Term:
    """One feature of the model.

    Attributes:
        name: of a number of the probe.
        weight: of its standardised value.
        centre: subtracted first.
        scale: divided by then.
        low: least value seen in the fit.
        high: greatest value seen.
    """

    name: str
    weight: float
    centre: float
    scale: float
    low: float
    high: float

    def standard(self, value: float) -> float:
        """The value in units of the fit's spread, not beyond what the fit has seen."""
        return (min(max(value, self.low), self.high) - self.centre) / self.scale


@dataclass(frozen=True)
class ProspectModel:
    """The fitted model.

    Attributes:
        bias: of the share's logit.
        keep: part of its skill that a student keeps which takes over nothing.
        terms: the features.
        spread: quantiles of |error| / scale of error: 90 %.
        floor: least scale of error.
        noise: scale of error at s = 1/2 for a pair a whole accuracy apart.
        fitted_on: what it was fitted on, in words.
    """

    bias: float
    keep: float
    terms: tuple[Term, ...]
    spread: float
    floor: float
    noise: float
    fitted_on: str

    def share(self, values: Mapping[str, float]) -> float:
        """s: the share of the teacher's way that will be taken over, 0 to 1."""
        known = [t for t in self.terms if t.name in values]  # the others count as average
        logit = self.bias + sum(t.weight * t.standard(values[t.name]) for t in known)
        return 1 / (1 + math.exp(-logit))

    def after(self, values: Mapping[str, float]) -> float:
        """Accuracy after training."""
        s = self.share(values)
        return s * values["taught"] + (1 - s) * self.keep * values["student_accuracy"]

    def scale(self, values: Mapping[str, float]) -> float:
        """How large errors are for such a pair: largest where the share is undecided."""
        s = self.share(values)
        apart = abs(values["taught"] - self.keep * values["student_accuracy"])
        return self.floor + self.noise * apart * 4 * s * (1 - s)


@dataclass(frozen=True)
class Prospect:
    """What to expect of a pair.

    Attributes:
        share: of the teacher's way that is taken over.
        change: accuracy change with its 90 % interval; None without answers.
        recovery: share of the teacher's lead recovered, 90 %; None without answers or lead.
        outside: features beyond what the fit has seen, in words.
    """

    share: float
    change: Estimate | None
    recovery: Estimate | None
    outside: tuple[str, ...]


def load_model() -> ProspectModel:
    """The model that ships with the package."""
    text = (files("opd.recipes.check") / MODEL).read_text("utf-8")
    return of_record(json.loads(text))


def of_record(record: Mapping[str, object]) -> ProspectModel:
    """A model from its JSON."""
    terms = tuple(Term(**t) for t in record["terms"])  # type: ignore[attr-defined]
    return ProspectModel(**(dict(record) | {"terms": terms}))  # type: ignore[arg-type]


def foretell(model: ProspectModel, found: Mapping[str, Estimate]) -> Prospect:
    """What to expect of a pair.

    The interval adds up two doubts: the model's errors on pairs it was not fitted on, and the
    probe's own sampling error of the lead.

    Args:
        model: the fitted model.
        found: the numbers of the probe.
    """
    values = {name: e.value for name, e in found.items()}
    outside = tuple(
        told
        for term in model.terms
        if term.name in values and (told := _outside(term, values[term.name])) is not None
    )
    share = model.share(values)
    if "lead" not in found:
        return Prospect(share, None, None, outside)
    change = model.after(values) - values["student_accuracy"]
    of_model = model.spread * model.scale(values)
    lead, gap = found["lead"], found["gap"]
    of_probe = share * (lead.high - lead.low) / 2 * 0.84  # 95 % half-width to 90 %
    half = math.hypot(of_model, of_probe)
    low = max(change - half, -values["student_accuracy"])
    high = min(change + half, 1 - values["student_accuracy"])
    estimate = Estimate(change, low, high, gap.n)
    recovery = None
    if gap.low > 0:
        recovery = Estimate(change / gap.value, low / gap.value, high / gap.value, gap.n)
    return Prospect(share, estimate, recovery, outside)


def _outside(term: Term, value: float) -> str | None:
    slack = SLACK * (term.high - term.low)
    if term.low - slack <= value <= term.high + slack:
        return None
    return f"{term.name} is {value:.3g}; the lab has seen {term.low:.3g} to {term.high:.3g}"
