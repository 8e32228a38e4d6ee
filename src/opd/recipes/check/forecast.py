"""Predicted change of accuracy by this run: several views of it, weighed by their errors.

    distance   after = a target + (1 - a - l) before,   (a, l, rest) = softmax(w_a . z, w_l . z, 0)
    pilot      change after the pilot's steps, extrapolated to the end of the run
    stretch    change after its steps at a raised rate, extrapolated from there
    part       change after half or all of the run's own steps, where there was time for them

The first needs no training: a is the fraction of the teacher's behaviour that the student adopts
(the transfer), l the fraction of its accuracy that it loses on the way, target the teacher's
accuracy on answers that the student can follow, z a few measures of compatibility. The others are
measured (`opd.recipes.check.pilot_features`); extrapolated with the speed at which the pilot moved
the student towards the teacher, E e-folds of reverse KL over the whole run; where the student gives
few right answers yet, with the probability of whole answers (`reached`). Nothing in it depends on
the size or the learning rate of a model, only on what its own steps did.

The interval is made of errors on worlds that were left out of the fit: wider where the transfer is
undecided, where the views disagree and where the measurement itself is uncertain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from opd.core.stats import Estimate
from opd.recipes.check.forecast_model import (
    Combination,
    ForecastModel,
    Mixture,
    Term,
    View,
    is_known,
)
from opd.recipes.check.settings import RunSettings

SLACK = 0.1  # how far outside the fitted range a feature may lie, as a fraction of that range
OUTSIDE = 1.5  # times the width, for a pair outside the fitted range
DISTANCE, PILOT, STRETCH, PART = "distance", "pilot", "stretch", "part"
MIN_PART = 0.2  # of a run's sum of learning rates, that a part of it has to cover: as in the fit
MIN_STEPS = 2  # of a pilot that counts: those of the fit had four, and the first may lead away
MAX_DROP = 0.98  # of the reverse KL in the pilot: beyond it the speed is unknown
MIN_EFOLDS = 0.01
MIN_DISAGREEMENT = 0.2  # of accuracy, between views, from which on it is worth a sentence
NORMAL_90, NORMAL_95 = 1.645, 1.96  # half-widths of normal intervals, in standard errors
MIN_ERROR = 1e-3  # of a measured change
MIN_NATS = 0.02  # per answer, between student and teacher
MIN_REACH, MAX_GROWTH = 1e-4, 20.0  # below and above, a pilot saw too little to extrapolate from
UNABLE = 0.5  # fraction of the teacher's accuracy below which a student gives few right answers
ANSWERS = ("pilot_off_gain", "pilot_path", "offpolicy_kl", "teacher_length")
TYPICAL_CHANGE = 0.02  # of accuracy, by which errors of extrapolation are measured: no actual one,
# since more of a measured change must never predict less
NEEDED = ("student_accuracy", "teacher_accuracy", "weighted_teacher_accuracy")


@dataclass(frozen=True)
class Distribution:
    """The change of accuracy as a random quantity.

    Attributes:
        mean: of the views.
        scale: of the errors.
        combination: with the quantiles of the errors.
        sampling: of the 90 % interval's half-width, what more prompts would take away.
    """

    mean: float
    scale: float
    combination: Combination
    sampling: float

    def quantile(self, level: float) -> float:
        """The change that is not exceeded with this probability."""
        return self.mean + self.scale * self.combination.quantile(level)

    def interval(self, level: float, student: Estimate) -> tuple[float, float]:
        """The central interval of a level, as far as accuracies from 0 to 1 allow it.

        Args:
            level: probability that the change lies in it.
            student: accuracy before; its own interval says how far it can fall or rise.
        """
        low, high = (self.quantile(x) for x in ((1 - level) / 2, (1 + level) / 2))
        return max(low, -min(student.high, 1.0)), min(high, 1 - max(student.low, 0.0))

    def below(self, bound: float) -> float:
        """Probability of a change below a bound."""
        return self.combination.below((bound - self.mean) / self.scale)


@dataclass(frozen=True)
class Forecast:
    """What training of a pair is predicted to change.

    Attributes:
        transfer: fraction of the teacher's behaviour that the student adopts.
        change: accuracy change with its 90 % interval; None without answers.
        recovery: fraction of the accuracy gap recovered, 90 %; None without answers or a gap.
        out_of_range: features outside the range of the fit, in words.
        rises: probability that accuracy rises; None without answers.
        recovers_half: probability that half of the gap is recovered; None without a gap.
        views: the change by view.
        disagrees: whether measured and static views differ by more than the interval's half-width.
        efolds: e-folds of reverse KL that the run makes at the pilot's speed; None without a pilot.
        least: the 5 % quantile of the change, of a student exactly as accurate as it was measured.
        distribution: of the change; None without answers.
    """

    transfer: float
    change: Estimate | None
    recovery: Estimate | None
    out_of_range: tuple[str, ...] = ()
    rises: float | None = None
    recovers_half: float | None = None
    views: Mapping[str, float] = field(default_factory=dict)
    disagrees: bool = False
    efolds: float | None = None
    least: float | None = None
    distribution: Distribution | None = None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(replace(self, distribution=None))

    def without_accuracy(self) -> Forecast:
        """What rests on no graded answer: transfer, e-folds, and what is out of range."""
        return Forecast(self.transfer, None, None, self.out_of_range, efolds=self.efolds)


def predict(
    model: ForecastModel,
    features: Mapping[str, Estimate],
    run: RunSettings | None = None,
    proposed: RunSettings | None = None,
) -> Forecast:
    """Predict what training will change.

    Args:
        model: the fitted model.
        features: the numbers of the probe, and of the pilot if there was one.
        run: settings of the run that they were measured for.
        proposed: another run of the pair, whose rates add up to more or less; None: that run.
    """
    ratio = 1.0
    if run is not None and proposed is not None:
        ratio = proposed.path() / run.path()
    features = without_short_pilot(features)
    values = {name: e.value for name, e in features.items()}
    values |= derived_features(values, ratio)
    outside = tuple(_out_of_range(model.mixture.terms, values))
    transfer, _ = model.mixture.fractions(values)
    if not all(is_known(values, name) for name in NEEDED):
        return Forecast(transfer, None, None, outside, efolds=values.get("efolds"))
    views = estimate_views(model.mixture, features, ratio)
    combination = model.combination(views)
    mean, scale = combination.combine(views)
    sampling = math.sqrt(sum(views[name].sampling ** 2 for name in combination.errors))
    sampling *= NORMAL_90 / len(combination.errors)
    distribution = Distribution(mean, scale * (OUTSIDE if outside else 1.0), combination, sampling)
    changes = {name: views[name].change for name in views}
    base = Forecast(transfer, None, None, outside, views=changes, efolds=values.get("efolds"))
    return _filled(base, distribution, features)


def without_short_pilot(features: Mapping[str, Estimate]) -> Mapping[str, Estimate]:
    """The features, without those of a pilot of fewer than `MIN_STEPS` unless that is the run."""
    if "pilot_steps" not in features or features["pilot_steps"].value >= MIN_STEPS:
        return features
    if "pilot_path" in features and features["pilot_path"].value >= 1:
        return features
    pilot = (f"{PILOT}_", f"{STRETCH}_", f"{PART}_")
    return {name: e for name, e in features.items() if not name.startswith(pilot)}


def _filled(
    base: Forecast, distribution: Distribution, features: Mapping[str, Estimate]
) -> Forecast:
    """The forecast with everything that follows from the distribution."""
    student, gap = features["student_accuracy"], features["gap"]
    low, high = distribution.interval(0.9, student)
    least, centre, most = (
        min(max(distribution.quantile(level), -student.value), 1 - student.value)
        for level in (0.05, 0.5, 0.95)
    )
    recovery = half = None
    if gap.low > 0:
        recovery = Estimate(centre / gap.value, low / gap.value, high / gap.value, gap.n)
        half = 1 - distribution.below(0.5 * gap.value)
    used = [name for name in distribution.combination.errors if name != DISTANCE]
    distance = max((abs(base.views[name] - base.views[DISTANCE]) for name in used), default=0.0)
    return replace(
        base,
        change=Estimate(centre, low, high, gap.n),
        least=least,
        recovery=recovery,
        rises=1 - distribution.below(0.0),
        recovers_half=half,
        disagrees=distance > max((most - least) / 2, MIN_DISAGREEMENT),
        distribution=distribution,
    )


def derived_features(values: Mapping[str, float], ratio: float = 1.0) -> dict[str, float]:
    """What the pilot says about the whole run: `efolds`, `log_efolds` and `reach`; nothing without.

    `reach` is how far the student will be on the way to the teacher's answers (see `reached`) if it
    goes on at the pilot's speed.

    Args:
        values: features.
        ratio: sum of the rates of the run in question over that of the run of the pilot.
    """
    if not (is_known(values, "pilot_kl_drop") and is_known(values, "pilot_path")):
        return {}
    if values["pilot_path"] <= 0:  # none of its steps was made
        return {}
    drop = min(max(values["pilot_kl_drop"], 0.0), MAX_DROP)
    efolds = max(-math.log(1 - drop) / values["pilot_path"] * ratio, MIN_EFOLDS)
    derived = {"efolds": efolds, "log_efolds": math.log(efolds)}
    if all(is_known(values, name) for name in ANSWERS):
        gone = min(max(values["pilot_off_gain"], 0.0), MAX_DROP)
        speed = max(-math.log(1 - gone) / values["pilot_path"] * ratio, MIN_EFOLDS)
        derived["reach"] = reached(values, math.exp(-speed))
    return derived


def reached(values: Mapping[str, float], left: float) -> float:
    """How far the student is on the way from its own to the teacher's probability of an answer.

    A whole answer of the teacher is d = `offpolicy_kl` x `teacher_length` nats less likely under
    the student. With a fraction `left` of them it is made with exp(-left d) of the teacher's
    probability: 0 for where it is now, 1 for the teacher. Unlike KL per token it stays near 0 for
    long and then jumps, as accuracy does.

    Args:
        values: features.
        left: fraction of the distance, 0 to 1.
    """
    nats = max(values["offpolicy_kl"] * values["teacher_length"], MIN_NATS)
    now = math.exp(-nats)
    return (math.exp(-left * nats) - now) / (1 - now)


def growth(fraction: float, efolds: float) -> float:
    """Change at the end of a run over that after a fraction of it: an approach at constant speed.

    (1 - exp(-E)) / (1 - exp(-E f)): 1/f for a run that gets nowhere, 1 for one that has arrived.
    """
    return (1 - math.exp(-efolds)) / (1 - math.exp(-efolds * fraction))


def estimate_views(
    mixture: Mixture, features: Mapping[str, Estimate], ratio: float = 1.0
) -> dict[str, View]:
    """The change of accuracy by each view that the features allow.

    Args:
        mixture: the view `distance`.
        features: the numbers of the probe and the pilot.
        ratio: as in `derived_features`.
    """
    values = {name: e.value for name, e in features.items()}
    values |= derived_features(values, ratio)
    views = {DISTANCE: _distance_view(mixture, features, values)}
    before = values["student_accuracy"]
    measurements = (
        (PILOT, pilot_change(features)),
        (STRETCH, resampled_change(features, STRETCH)),
        (PART, resampled_change(features, PART)),
    )
    for name, measured in measurements:
        path = f"{name}_path"
        if measured is None or not (is_known(values, path) and is_known(values, "efolds")):
            continue
        if name == PART and values[path] / ratio < MIN_PART:
            continue
        change, error = measured
        times = growth(values[path] / ratio, values["efolds"])
        if name != PART:  # whose own answers say how far it is; it was fitted without
            times = max(times, _growth_of_reach(values, name))
        grown = min(max(change * times, -before), 1 - before)
        added = TYPICAL_CHANGE * (times - 1)
        added += _stretch_shortfall(values, values[path] / ratio) if name == STRETCH else 0.0
        views[name] = View(grown, min(error * times, 1.0), min(added, 1.0))
    return views


def _growth_of_reach(values: Mapping[str, float], view: str) -> float:
    """Reach at the end over that at the view's steps; 1 for a student that is able already.

    The first right answers of a student that gives few come when whole answers become likely, which
    KL per token does not show: accuracy at the pilot's end is then a small part of what follows.
    """
    travelled = f"{view}_off_gain"
    if "reach" not in values or not is_known(values, travelled):
        return 1.0
    if values["student_accuracy"] >= UNABLE * values["teacher_accuracy"]:
        return 1.0
    there = reached(values, 1 - min(max(values[travelled], 0.0), 1.0))
    return min(values["reach"] / max(there, MIN_REACH), MAX_GROWTH)


def _stretch_shortfall(values: Mapping[str, float], path: float) -> float:
    """How much less of the reverse KL the stretch took away than the pilot's speed says, 0 to 1.

    At a raised rate a student may break that the run itself would teach: steps that do not come
    nearer to the teacher say little of where the run will be.
    """
    if not is_known(values, "stretch_kl_drop"):
        return 0.0
    expected = 1 - math.exp(-values["efolds"] * path)
    return min(max(expected - values["stretch_kl_drop"], 0.0), 1.0)


def _distance_view(
    mixture: Mixture, features: Mapping[str, Estimate], values: Mapping[str, float]
) -> View:
    square = 0.0
    for name in ("weighted_teacher_accuracy", "student_accuracy"):
        error = standard_error(features[name])
        moved = [mixture.change({**values, name: values[name] + d}) for d in (-error, error)]
        square += ((moved[1] - moved[0]) / 2) ** 2
    return View(mixture.change(values), math.sqrt(square), mixture.spread(values))


def standard_error(e: Estimate) -> float:
    """From a 95 % interval."""
    half = (e.high - e.low) / 2
    return half / NORMAL_95 if math.isfinite(half) else 1.0


def pilot_change(features: Mapping[str, Estimate]) -> tuple[float, float] | None:
    """Change of accuracy by the pilot so far, and its standard error; None if not measured.

    Reweighted rollouts are exact while few weights differ; where they do, the effective number of
    them falls, and answers that were sampled again are trusted instead.
    """
    known = []
    if "pilot_change" in features:
        change, effective = features["pilot_change"], features.get("pilot_ess")
        doubt = 0.0 if effective is None else (1 - effective.value) ** 2 / 2
        known.append((change.value, math.hypot(standard_error(change), doubt)))
    if "pilot_resampled" in features:
        known.append(
            (features["pilot_resampled"].value, standard_error(features["pilot_resampled"]))
        )
    if not known:
        return None
    precisions = [1 / max(error, MIN_ERROR) ** 2 for _, error in known]
    mean = sum(p * x for p, (x, _) in zip(precisions, known, strict=True)) / sum(precisions)
    return mean, 1 / math.sqrt(sum(precisions))


def resampled_change(features: Mapping[str, Estimate], view: str) -> tuple[float, float] | None:
    """Change of accuracy of answers sampled again, and its standard error; None if not measured."""
    measured = features.get(f"{view}_resampled")
    return None if measured is None else (measured.value, standard_error(measured))


def _out_of_range(terms: Sequence[Term], values: Mapping[str, float]) -> list[str]:
    outside = []
    for term in terms:
        slack = SLACK * (term.high - term.low)
        value = values.get(term.name, term.centre)
        if value < term.low - slack or value > term.high + slack:
            seen = f"{term.low:.3g} to {term.high:.3g}"
            outside.append(f"{term.name} is {value:.3g}; the lab's pairs had {seen}")
    return outside
