"""From features to a verdict: go, go with changes, or no-go; why; what to change; how certain.

The thresholds are those that `opd lab calibrate` was judged with; docs/check.md has the error
rates that resulted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from scipy import stats as scipy_stats

from opd.core.stats import Estimate
from opd.recipes.check.compatibility import Finding
from opd.recipes.check.forecast import Forecast
from opd.recipes.check.probe import DEPTHS

Verdict = Literal["go", "go with changes", "don't"]
GO: Final = "go"
CHANGES: Final = "go with changes"
NO_GO: Final = "don't"

MIN_GAP = 0.05  # a teacher less far ahead than this has nothing to teach
WORTHWHILE, NEGLIGIBLE = 0.5, 0.2  # fractions of the gap recovered: worth a run; not worth one
MAX_RISK = 0.1  # probability of being wrong that a go or no-go may carry
COMPATIBLE = 0.5  # transfer from which on a pair counts as compatible
SAME_AS_BASE = 0.1  # KL(base || teacher) / KL(base || student): below it the teacher is the base
MAX_TRUNCATED = 0.2  # fraction of student rollouts cut off, above which the limit is too low
MIN_SUPPORT_MASS = 0.97  # of the student inside the support of the loss
NORMAL_90 = 1.645


@dataclass(frozen=True)
class Reason:
    """A statement and the numbers behind it."""

    text: str
    evidence: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"text": self.text, "evidence": self.evidence}


@dataclass(frozen=True)
class Advice:
    """What to change, and the configuration keys that do it."""

    text: str
    set: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"text": self.text, "set": dict(self.set)}


@dataclass(frozen=True)
class RunFacts:
    """What advice depends on beside the features.

    Attributes:
        truncated: fraction of student rollouts cut off at the limit.
        support_mass: the student's probability mass inside the support of the loss.
        max_new_tokens: rollout.max_new_tokens.
        cold_start: the `coldstart` section to set; None if the teacher cannot generate or the run
            has one already.
    """

    truncated: float
    support_mass: float
    max_new_tokens: int
    cold_start: Mapping[str, Any] | None


def judge(forecast: Forecast, features: Mapping[str, Estimate]) -> Verdict:
    """The verdict on a pair whose tokens and prompts are compatible.

    - no-go: nothing to gain (a weighted gap below `MIN_GAP`), or `WORTHWHILE` of the gap is
      unlikely to be recovered as the run is configured.
    - go: `WORTHWHILE` of the gap is predicted, and less than `NEGLIGIBLE` of it is unlikely.
    - go with changes: everything between, and every pair outside the range of the lab.
    """
    change = forecast.change
    if "weighted_gap" not in features or change is None:
        return CHANGES
    gap = features["weighted_gap"].value
    if gap < MIN_GAP and change.value < MIN_GAP:
        return NO_GO
    if forecast.out_of_range:
        return CHANGES
    if change.value >= WORTHWHILE * gap and probability_below(change, NEGLIGIBLE * gap) <= MAX_RISK:
        return GO
    if 1 - probability_below(change, WORTHWHILE * gap) <= MAX_RISK:
        return NO_GO
    return CHANGES


def probability_below(change: Estimate, bound: float) -> float:
    """Probability that a quantity with this 90 % interval is below a bound, errors being normal."""
    sigma = (change.high - change.low) / (2 * NORMAL_90)
    if sigma == 0 or not math.isfinite(sigma):
        return float(change.value < bound)
    return float(scipy_stats.norm.cdf((bound - change.value) / sigma))


def cold_start_helps(features: Mapping[str, Estimate]) -> bool:
    """Whether a cold start has something to teach: the teacher is more accurate on its own.

    `weighted_gap` weighs its answers by the student's likelihood, since on-policy training teaches
    the likely ones; a cold start teaches the others too, so a `gap` over all of them is enough.
    """
    if "weighted_gap" not in features:
        return False
    gap = features["gap"]
    return features["weighted_gap"].value >= MIN_GAP or (gap.low > 0 and gap.value >= MIN_GAP)


def nothing_accepted(features: Mapping[str, Estimate]) -> bool:
    """Whether no answer of either model was graded correct."""
    names = ("student_accuracy", "teacher_accuracy")
    accuracies = [features[name].value for name in names if name in features]
    return len(accuracies) == 2 and not any(accuracies)


def confidence(forecast: Forecast) -> str:
    """How certain the forecast is, in words."""
    if forecast.change is None:
        return "Without answers the change of accuracy cannot be predicted."
    better = 1 - probability_below(forecast.change, 0.0)
    text = f"chance that accuracy rises: {better:.0%}"
    if forecast.out_of_range:
        return f"{text}, if this pair behaves like those of the lab, whose range it exceeds"
    return f"{text} (90 % of lab outcomes fell inside such intervals)"


def explain(forecast: Forecast, features: Mapping[str, Estimate]) -> list[Reason]:
    """The reasons for the verdict, the strongest first."""
    reasons = [_accuracy_reason(features), _compatibility_reason(forecast, features)]
    reasons.append(_signal_reason(features))
    return [reason for reason in reasons if reason is not None]


def _accuracy_reason(features: Mapping[str, Estimate]) -> Reason:
    if "gap" not in features:
        return Reason(
            "Without answers it is unknown whether the teacher is more accurate than the student",
            "give prompts.path an answer column, or an eval set",
        )
    gap, gain = features["gap"], features.get("continuation_gain")
    evidence = _accuracy_evidence(features)
    if gap.low > 0 and gap.value >= MIN_GAP:
        text = "The teacher is more accurate than the student"
        if gain is not None and gain.high < 0:
            text = (
                "The teacher is more accurate on its own, but cannot continue what the student "
                "generates"
            )
        return Reason(text, evidence)
    if gap.high < 0:
        return Reason(
            "The teacher is less accurate than the student: training would lower accuracy", evidence
        )
    return Reason("The teacher is not measurably more accurate than the student", evidence)


def _accuracy_evidence(features: Mapping[str, Estimate]) -> str:
    student, teacher = features["student_accuracy"], features["teacher_accuracy"]
    parts = [
        f"teacher {percent(teacher)}, student {percent(student)}, gap {points(features['gap'])}"
    ]
    if "continuation_gain" in features:
        at_depths = [f"{100 * features[f'gain@{d:g}'].value:+.0f}" for d in DEPTHS]
        parts.append(
            f"continuing the student's prefixes: {points(features['continuation_gain'])}, after "
            f"{', '.join(f'{d:.0%}' for d in DEPTHS)} of a rollout: {', '.join(at_depths)}"
        )
    if "headroom" in features:
        parts.append(
            f"one of the student's samples is correct on {percent(features['pass_at_n'])} of the "
            f"prompts, beyond that the teacher adds {points(features['headroom'])}"
        )
    return "; ".join(parts)


def _compatibility_reason(forecast: Forecast, features: Mapping[str, Estimate]) -> Reason | None:
    if "overlap_mass" not in features:
        return None
    parts = [f"shared top-k mass {percent(features['overlap_mass'])}"]
    if "reverse_kl" in features:
        parts.append(f"reverse KL {number(features['reverse_kl'])} nats per token")
    if "offpolicy_overlap_mass" in features:
        parts.append(
            "the student's shared top-k mass on the teacher's rollouts "
            f"{percent(features['offpolicy_overlap_mass'])}"
        )
    parts.append(f"predicted transfer {forecast.transfer:.0%} of the teacher's behaviour")
    compatible = forecast.transfer >= COMPATIBLE
    word = "compatible" if compatible else "not compatible"
    return Reason(f"The models are {word} on the student's rollouts", "; ".join(parts))


def _signal_reason(features: Mapping[str, Estimate]) -> Reason | None:
    if "auroc" not in features or math.isnan(features["auroc"].value):
        return None
    area, tilt = features["auroc"], features["tilt_gain"]
    evidence = (
        f"AUROC of the mean reward {number(area)}; accuracy of the student's samples reweighted "
        f"towards the teacher: {points(tilt)}"
    )
    if area.low > 0.5:
        return Reason("The teacher's scores separate correct from incorrect answers", evidence)
    return Reason("The teacher's scores do not separate correct from incorrect answers", evidence)


def base_model_reason(teacher_kl: Estimate, student_kl: Estimate) -> Reason:
    """Whether the teacher differs from the student's base model on student rollouts (paper 3.3).

    Args:
        teacher_kl: KL(base || teacher) per token on student rollouts.
        student_kl: KL(base || student) there.
    """
    evidence = (
        f"KL from the base model (check.origin) on the student's rollouts: teacher "
        f"{number(teacher_kl)}, student {number(student_kl)} nats per token"
    )
    if teacher_kl.high < SAME_AS_BASE * student_kl.value:
        return Reason(
            "The teacher is the student's base model again: training would undo gains", evidence
        )
    return Reason("The teacher differs from the student's base model", evidence)


def advise(
    verdict: Verdict,
    forecast: Forecast,
    features: Mapping[str, Estimate],
    findings: Sequence[Finding],
    run: RunFacts,
) -> list[Advice]:
    """What to change, with the keys that do it.

    Args:
        verdict: of `judge`.
        forecast: of `predict`.
        features: the numbers of the probe.
        findings: on the compatibility of tokens and prompts.
        run: what else the advice depends on.
    """
    advice = [Advice(f"{f.message}: {f.fix}") for f in findings if f.level == "warning"]
    advice += _teacher_advice(verdict, forecast, features, run)
    if run.truncated > MAX_TRUNCATED:
        advice.append(
            Advice(
                f"{run.truncated:.0%} of the student's rollouts are cut off at "
                f"{run.max_new_tokens} tokens: raise the limit",
                {"rollout.max_new_tokens": 2 * run.max_new_tokens},
            )
        )
    if run.support_mass < MIN_SUPPORT_MASS:
        advice.append(
            Advice(
                f"The support of the loss holds only {run.support_mass:.1%} of the student's mass: "
                "add the tail bucket, so that what lies outside cannot drift",
                {"loss.mode": "tail"},
            )
        )
    if forecast.out_of_range and verdict != NO_GO:
        advice.append(
            Advice(
                "This pair is outside the range of the lab: train a tenth of the steps and look at "
                "accuracy and overlap before you continue"
            )
        )
    return advice


def _teacher_advice(
    verdict: Verdict, forecast: Forecast, features: Mapping[str, Estimate], run: RunFacts
) -> list[Advice]:
    """Another teacher, or a cold start."""
    cold_start = run.cold_start
    if forecast.transfer >= COMPATIBLE or not cold_start_helps(features):
        cold_start = None
    ahead = "weighted_gap" in features and features["weighted_gap"].value >= MIN_GAP
    advice = []
    if verdict == NO_GO and not ahead and cold_start is None:
        advice.append(
            Advice(
                "Choose a teacher that is more accurate on these prompts, preferably one of the "
                "student's family that was improved (by reinforcement learning, say) rather than a "
                "bigger one"
            )
        )
    if cold_start is not None:
        advice.append(
            Advice("Begin with a cold start on the teacher's own rollouts", dict(cold_start))
        )
    return advice


def percent(e: Estimate) -> str:
    """A fraction in per cent, with its interval."""
    return f"{e.value:.1%} ({e.low:.1%} to {e.high:.1%})"


def points(e: Estimate) -> str:
    """A difference of fractions in percentage points, with its interval."""
    return f"{100 * e.value:+.1f} points ({100 * e.low:+.1f} to {100 * e.high:+.1f})"


def number(e: Estimate) -> str:
    """An estimate with its interval."""
    return f"{e.value:.3g} ({e.low:.3g} to {e.high:.3g})"
