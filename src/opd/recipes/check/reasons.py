"""Why a verdict is what it is: the rule that decided first, then what was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opd.core.percents import percents
from opd.core.stats import Estimate
from opd.recipes.check.forecast import DISTANCE, MIN_STEPS, Forecast, without_short_pilot
from opd.recipes.check.probe import DEPTHS
from opd.recipes.check.settings import RunSettings
from opd.recipes.check.verdict import (
    GO,
    MIN_GAP,
    NO_GO,
    Rule,
    Verdict,
    decisive_rule,
    made_whole,
    nothing_accepted,
)
from opd.recipes.check.wording import number, percent, points
from opd.training.loop import MAX_SKIPPED

COMPATIBLE = 0.5  # transfer from which on a pair counts as compatible
SAME_AS_BASE = 0.1  # KL(base || teacher) / KL(base || student): below it the teacher is the base
MAX_TRUNCATED = 0.2  # fraction of a model's answers cut off, above which the limit is too low
AGAINST = "Against this verdict: "


@dataclass(frozen=True)
class Reason:
    """A statement and the numbers behind it."""

    text: str
    evidence: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"text": self.text, "evidence": self.evidence}


@dataclass(frozen=True)
class _Statement:
    """A reason with what it speaks for: True for the run, False against it, None for neither."""

    reason: Reason
    favours: bool | None


def explain(
    verdict: Verdict,
    forecast: Forecast,
    features: Mapping[str, Estimate],
    run: RunSettings | None = None,
) -> list[Reason]:
    """The reasons for the verdict, the decisive one first; what speaks against it is marked.

    Args:
        verdict: on the run as configured, or with changes.
        forecast: of the run as configured.
        features: the numbers of the probe and the pilot.
        run: its settings, for the temperature of the accuracies.
    """
    rule = decisive_rule(forecast, features)
    cold = run is not None and run.cold_start
    text = UNANSWERED if rule == "unmeasured" and only_scores(features) else DECISIVE[rule]
    if cold and rule not in ("refused", "unmeasured", "few"):
        text = NOT_AHEAD if verdict == NO_GO else f"Without the cold start, {lowered(text)}"
    first = Reason(text, _decisive_evidence(forecast, features, run))
    steps = "The run's first steps"
    if made_whole(features):
        steps = "The run's steps, all made on a copy,"
    if cold:
        steps = "On-policy steps without the cold start"
    statements = [
        _lead_statement(features),
        _pilot_statement(forecast, features, steps),
        _refused_statement(features),
        _compatibility_statement(forecast, features),
        _signal_statement(features),
        _truncation_statement(features),
    ]
    return [first, *(_placed(s, verdict) for s in statements if s is not None)]


NOT_AHEAD = (
    "The teacher is not ahead by enough to teach anything, and a cold start does not change that"
)
UNANSWERED = (
    "The teacher only scores here, so it is unknown whether it is more accurate than the student"
)


def only_scores(features: Mapping[str, Estimate]) -> bool:
    """Whether the prompts have answers, and the teacher was not asked for its own."""
    return "student_accuracy" in features and "teacher_accuracy" not in features


DECISIVE: Mapping[Rule, str] = {
    "refused": "Not one step of the run can be made: its loss or gradient is not finite",
    "unmeasured": "Without answers it is unknown whether the teacher is more accurate than the "
    "student",
    "few": "Too few prompts were measured to decide anything",
    "worse": "The teacher is less accurate than the student, and training is not predicted to help",
    "falls": "Training is predicted to lower accuracy",
    "level": "The teacher is not ahead by enough to teach anything",
    "recovers": "Training is predicted to recover most of what the teacher is ahead",
    "rising": "Little is predicted, but steps of the pilot raise accuracy: more of them, or the "
    "run itself, would decide",
    "too little": "Training is predicted to recover less than half of what the teacher is ahead",
    "undecided": "What was measured does not decide whether training helps",
}


def _placed(statement: _Statement, verdict: Verdict) -> Reason:
    opposed = (verdict == GO and statement.favours is False) or (
        verdict == NO_GO and statement.favours is True
    )
    if not opposed:
        return statement.reason
    return Reason(f"{AGAINST}{lowered(statement.reason.text)}", statement.reason.evidence)


def lowered(text: str) -> str:
    """A sentence as the rest of another one."""
    return text[0].lower() + text[1:]


def _decisive_evidence(
    forecast: Forecast, features: Mapping[str, Estimate], run: RunSettings | None
) -> str:
    if decisive_rule(forecast, features) == "refused":
        return f"a run ends after {MAX_SKIPPED} such steps in a row"
    if only_scores(features):
        return (
            "the teacher gives no answers to grade: so do servers without completions, teachers "
            "with a tokenizer of their own, and those that see more than the student"
        )
    if forecast.change is None:
        return "give prompts.path an answer column, or an eval set"
    without = " without the cold start" if run is not None and run.cold_start else ""
    parts = [f"predicted change{without} {points(forecast.change)} (90 % interval)"]
    if forecast.rises is not None:
        parts.append(f"chance that accuracy rises {percents(forecast.rises, 0)}%")
    if forecast.recovers_half is not None:
        parts.append(f"that half of the gap is recovered {percents(forecast.recovers_half, 0)}%")
    gap = f"the teacher's lead is {points(features['gap'])}"
    if run is not None:
        gap += f" at {sampling_text(run)}"
    return "; ".join([*parts, gap])


def sampling_text(run: RunSettings) -> str:
    """How the answers are sampled that every accuracy of the check is of."""
    like = "as the first held-out set is evaluated" if run.evaluated else "as in training"
    if run.eval_temperature == 0:
        return f"temperature 0 (greedy), {like}"
    top_p = f", top_p {run.eval_top_p:g}" if run.eval_top_p < 1 else ""
    return f"temperature {run.eval_temperature:g}{top_p}, {like}"


def _lead_statement(features: Mapping[str, Estimate]) -> _Statement | None:
    if "gap" not in features:
        return None
    gap, gain = features["gap"], features.get("continuation_gain")
    evidence = _accuracy_evidence(features)
    if gap.low > 0 and gap.value >= MIN_GAP:
        text = "The teacher is more accurate than the student"
        if gain is not None and gain.high < 0:
            alone = (
                "The teacher is more accurate on its own, but cannot continue what the student "
                "generates"
            )
            return _Statement(Reason(alone, evidence), False)
        return _Statement(Reason(text, evidence), True)
    if gap.high < 0:
        return _Statement(Reason("The teacher is less accurate than the student", evidence), False)
    text = "The teacher is not measurably more accurate than the student"
    if gap.low > 0:
        less = f"by less than {100 * MIN_GAP:.0f} points"
        text = f"The teacher is more accurate than the student, but {less}"
    return _Statement(Reason(text, evidence), False)


def _accuracy_evidence(features: Mapping[str, Estimate]) -> str:
    student, teacher = features["student_accuracy"], features["teacher_accuracy"]
    parts = [
        f"teacher {percent(teacher)}, student {percent(student)}, gap {points(features['gap'])}"
    ]
    if "weighted_teacher_accuracy" in features:
        weighted = features["weighted_teacher_accuracy"]
        parts.append(f"teacher on answers that are likely under the student {percent(weighted)}")
    if "greedy_accuracy" in features:
        parts.append(f"student at temperature 0 {percent(features['greedy_accuracy'])}")
    if "continuation_gain" in features:
        at_depths = [f"{100 * features[f'gain@{d:g}'].value:+z.0f}" for d in DEPTHS]
        parts.append(
            f"continuing the student's prefixes: {points(features['continuation_gain'])}, after "
            f"{', '.join(f'{d:.0%}' for d in DEPTHS)} of a rollout: {', '.join(at_depths)}"
        )
    if "headroom" in features:
        parts.append(
            f"student pass@n {percent(features['pass_at_n'])}; the teacher's accuracy beyond the "
            f"student's best rollout {points(features['headroom'])}"
        )
    return "; ".join(parts)


def _pilot_statement(
    forecast: Forecast, features: Mapping[str, Estimate], made: str
) -> _Statement | None:
    """What the pilot's steps, `made`, did; that they and the static numbers disagree, if so."""
    if "pilot_steps" not in features:
        return None
    steps, path = features["pilot_steps"].value, features["pilot_path"].value
    parts = [f"{steps:.0f} steps, {path:.1%} of the run"]
    for name, text, show in (
        ("pilot_change", "accuracy of the student's rollouts, reweighted", points),
        ("pilot_resampled", "answers sampled again", points),
        ("pilot_kl_drop", "reverse KL lower by", percent),
        ("stretch_resampled", "after a few steps at a raised rate", points),
    ):
        if name in features and math.isfinite(features[name].value):
            parts.append(f"{text} {show(features[name])}")
    known = [features[name] for name in ("pilot_change", "pilot_resampled") if name in features]
    if "part_resampled" in features:
        known, part = [features["part_resampled"]], features["part_steps"].value
        of_run = f"{part:.0f} steps, {features['part_path'].value:.0%} of the run"
        parts.append(f"answers sampled again after {of_run}: {points(known[0])}")
    raised, fell = any(e.low > 0 for e in known), any(e.high < 0 for e in known)
    text, favours = f"{made} move accuracy neither way yet", None
    if raised and not fell:
        text, favours = f"{made} raise accuracy", True
    elif fell and not raised:
        text, favours = f"{made} lower accuracy", False
    elif "stretch_resampled" in features and features["stretch_resampled"].low > 0:
        text, favours = f"{text}; more of them at a raised rate raise it", True
    if forecast.disagrees:
        views = [f"{name} {100 * change:+z.0f}" for name, change in forecast.views.items()]
        text += f"; they disagree with what the models' {DISTANCE} alone predicts"
        parts.append(f"change by view: {', '.join(views)} points")
    return _Statement(Reason(text, "; ".join(parts)), favours)


def _refused_statement(features: Mapping[str, Estimate]) -> _Statement | None:
    made = "part" if "part_refused" in features else "pilot"
    refused = features.get(f"{made}_refused")
    if refused is None or not refused.value:
        return None
    steps, whose = features[f"{made}_steps"].value, {"part": "run's first", "pilot": "pilot's"}
    text = (
        f"{steps * refused.value:.0f} of the {whose[made]} {steps:.0f} steps were not made: loss "
        "or gradient was not finite"
    )
    return _Statement(Reason(text), False)


def _compatibility_statement(
    forecast: Forecast, features: Mapping[str, Estimate]
) -> _Statement | None:
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
    text = f"The models are {word} on the student's rollouts"
    return _Statement(Reason(text, "; ".join(parts)), compatible)


def _signal_statement(features: Mapping[str, Estimate]) -> _Statement | None:
    if "auroc" not in features or math.isnan(features["auroc"].value):
        return None
    area, tilt = features["auroc"], features["tilt_gain"]
    evidence = (
        f"AUROC of the mean reward {number(area)}; accuracy of the student's samples reweighted "
        f"towards the teacher: {points(tilt)}"
    )
    if area.low > 0.5:
        text = "The teacher's scores separate correct from incorrect answers"
        return _Statement(Reason(text, evidence), True)
    text = "The teacher's scores do not measurably separate correct from incorrect answers"
    if area.high < 0.5:
        text = "The teacher's scores are higher for incorrect answers than for correct ones"
    return _Statement(Reason(text, evidence), False)


def _truncation_statement(features: Mapping[str, Estimate]) -> _Statement | None:
    cut = features.get("teacher_truncated")
    if cut is None or cut.value <= MAX_TRUNCATED:
        return None
    text = (
        f"{cut.value:.0%} of the teacher's answers are cut off at the limit: its accuracy and the "
        "lead are those of cut answers"
    )
    return _Statement(Reason(text, f"teacher {percent(cut)}"), None)


MOSTLY_CUT = 0.5  # fraction of both models' answers cut off, from which on the limit is suspected


def nothing_accepted_reason(features: Mapping[str, Estimate]) -> Reason:
    """Why no answer of either model may have been accepted."""
    if not mostly_cut(features):
        return Reason(
            "No answer of either model was accepted: suspect the grader or the template, not the "
            "models",
            "look at the two examples below; prompts.grader, prompts.template and prompts.chat "
            "decide",
        )
    return Reason(
        "No answer of either model was accepted, and most were cut off at the limit: raise it "
        "before you suspect the grader",
        f"cut off: student {percent(features['student_truncated'])}, teacher "
        f"{percent(features['teacher_truncated'])}",
    )


def mostly_cut(features: Mapping[str, Estimate]) -> bool:
    """Whether most answers of both models were cut off at the limit."""
    cut = (features.get("student_truncated"), features.get("teacher_truncated"))
    return all(e is not None and e.value > MOSTLY_CUT for e in cut)


BASE_NOT_KNOWN = "Whether the teacher differs from the student's base model is not known"


def base_model_reason(teacher_kl: Estimate, student_kl: Estimate, verdict: Verdict) -> Reason:
    """Whether the teacher differs from the student's base model on student rollouts (paper 3.3).

    Args:
        teacher_kl: KL(base || teacher) per token on student rollouts.
        student_kl: KL(base || student) there.
        verdict: that it stands beside; marked where it speaks against that.
    """
    evidence = (
        f"KL from the base model (check.origin) on the student's rollouts: teacher "
        f"{number(teacher_kl)}, student {number(student_kl)} nats per token"
    )
    if teacher_kl.high < SAME_AS_BASE * student_kl.value:
        undone = "The teacher is the student's base model again: training would undo gains"
        return _placed(_Statement(Reason(undone, evidence), False), verdict)
    if teacher_kl.low > SAME_AS_BASE * student_kl.value:
        return Reason("The teacher differs from the student's base model", evidence)
    return Reason(BASE_NOT_KNOWN, evidence)


def confidence(
    forecast: Forecast, features: Mapping[str, Estimate], *, cold_start: bool = False
) -> str:
    """How certain the forecast is, in words.

    Args:
        forecast: of the run.
        features: its numbers.
        cold_start: whether the run begins with one, which the forecast leaves out.
    """
    if decisive_rule(forecast, features) == "refused":
        return "Of steps that cannot be made no change of accuracy is predicted."
    if nothing_accepted(features):
        return "No change of accuracy is predicted: the accuracies it would rest on are in doubt."
    if only_scores(features):
        return "Without answers of the teacher the change of accuracy cannot be predicted."
    if forecast.change is None or forecast.rises is None:
        return "Without answers the change of accuracy cannot be predicted."
    without = " without the cold start" if cold_start else ""
    text = f"chance that accuracy rises{without}: {percents(forecast.rises, 0)}%"
    if "pilot_steps" in features and "pilot_steps" not in without_short_pilot(features):
        made = features["pilot_steps"].value
        text += f"; the pilot made {made:.0f} of the {MIN_STEPS} steps that the forecast needs"
    elif len(forecast.views) == 1 and "pilot_steps" in features:
        text += "; the pilot's steps say nothing of its length and rate"
    elif len(forecast.views) == 1:
        text += "; no step of the run was tried, so its length and rate are not known"
    if forecast.out_of_range:
        text += "; if this pair behaves like those of the lab, whose range it exceeds"
    return text
