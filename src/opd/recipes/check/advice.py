"""What to change in a run, with its predicted effect; and what would settle an open question."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from opd.config import Loss
from opd.core.stats import Estimate
from opd.recipes.check.compatibility import Finding
from opd.recipes.check.forecast import PART, PILOT, Distribution, Forecast, predict
from opd.recipes.check.forecast_model import ForecastModel
from opd.recipes.check.reasons import COMPATIBLE, MAX_TRUNCATED, mostly_cut, only_scores
from opd.recipes.check.settings import RunSettings
from opd.recipes.check.verdict import (
    CHANGES,
    GO,
    MIN_GAP,
    MIN_PROMPTS,
    NO_GO,
    UNKNOWN,
    Verdict,
    cold_start_helps,
    decisive_rule,
    judge,
    judge_before_cold_start,
    made_whole,
    nothing_accepted,
)
from opd.recipes.check.wording import points
from opd.types import Rollout

MIN_SUPPORT_MASS = 0.97  # of the student inside the support of the loss
LONGER = (2, 4)  # times the steps that are tried
FASTER = (3.0, 10.0)  # times the learning rate, for a run that gets nowhere
SLOW = 0.5  # e-folds of reverse KL over the run: below it the rate is too low to get anywhere
NEARLY_HALF = 0.38  # of the run's rates: with warm-up, half of the steps are less than half
MOSTLY_SAMPLING = 0.5  # of the interval's half-width, from which on more prompts help


# Rates of supervised training that were measured: the lab's tiny models are best at 4e-3, SmolLM2
# in full (hidden size 576) learns at 1e-4, Qwen2.5-Coder 0.5B by adapters at 3e-4 and forgets
# everything at 1e-3. Wider models are assumed to take less in proportion (7B: 1.6e-5).
COLD_START_FACTOR = 10.0
TINY_HIDDEN, TINY_RATE = 256, 4e-3
FULL_HIDDEN, FULL_RATE = 576, 1e-4
ADAPTER_RATE = 3e-4
SETTLE_GRADER = (
    "To settle it: read the two answers below. If one of them is right, correct prompts.grader, "
    "prompts.template or prompts.chat; if the task is too hard for both models, choose easier "
    "prompts or another teacher. Then check again"
)


@dataclass(frozen=True)
class Advice:
    """What to change, and the configuration keys that do it.

    Attributes:
        text: with the predicted effect, where there is one.
        set: configuration keys and their values.
        effect: predicted change of accuracy by the run with this change; None if unknown.
    """

    text: str
    set: Mapping[str, Any] = field(default_factory=dict)
    effect: Estimate | None = None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        effect = self.effect
        parts = None if effect is None else [effect.value, effect.low, effect.high]
        return {"text": self.text, "set": dict(self.set)} | ({"effect": parts} if parts else {})


@dataclass(frozen=True)
class RunFacts:
    """What advice depends on beside the features.

    Attributes:
        truncated: fraction of student rollouts cut off at the limit.
        support_mass: see `support_mass`.
        max_new_tokens: rollout.max_new_tokens.
        cold_start: the `coldstart` section to set; None if the teacher cannot generate or the run
            has one already.
        cold_student: where the run's own cold start leaves its student; None without one.
        prompts: of the probe.
        most_prompts: that a check of this run looks at, whatever its budget.
        answer_limit: key and tokens of the limit of held-out answers; None: as rollouts.
        room: for tokens of an answer, after the longest prompt in either context; None: unknown.
        file: the run's, as it is typed.
    """

    truncated: float
    support_mass: float
    max_new_tokens: int
    cold_start: Mapping[str, Any] | None
    cold_student: str | None = None
    prompts: int = 0
    most_prompts: int = 0
    answer_limit: tuple[str, int] | None = None
    room: int | None = None
    file: str = "run.yaml"


def cold_start_rate(run_rate: float, hidden: int, *, adapters: bool) -> float:
    """Learning rate to advise for a cold start.

    Ten times that of the run (paper: 1e-5 against 1e-6), but no more than supervised training of
    such a model is known to take, and never less than the run's own.

    Args:
        run_rate: optim.lr.
        hidden: size of the student's hidden states.
        adapters: it trains adapters, not all weights.
    """
    if hidden <= TINY_HIDDEN:
        most = TINY_RATE
    elif adapters:
        most = ADAPTER_RATE
    else:
        most = FULL_RATE * FULL_HIDDEN / hidden
    rate = min(COLD_START_FACTOR * run_rate, max(most, run_rate))
    return float(f"{rate:.2g}")


def support_mass(loss: Loss, rollouts: Sequence[Rollout]) -> float:
    """The student's mean probability on the tokens that its loss sees, where the rest may drift.

    Args:
        loss: of the run, its support settled.
        rollouts: of the student, with the log-probs of its top tokens.

    Returns:
        1 with a tail bucket, or on a support that is not the student's own top k.
    """
    if loss.support != "student_topk" or loss.mode == "tail":
        return 1.0
    masses = [np.exp(r.topk_logp[:, : loss.k]).sum(1) for r in rollouts if r.topk_logp.shape[1]]
    return float(np.concatenate(masses).mean()) if masses else 1.0


def decide(
    model: ForecastModel, features: Mapping[str, Estimate], run: RunSettings
) -> tuple[Verdict, Forecast, list[Advice]]:
    """The verdict on a run, the forecast it rests on, and the changes that make it a go.

    The forecast is without a change of accuracy where none can be predicted: of steps that cannot
    be made, and from answers of which none was accepted.
    """
    forecast = predict(model, features, run)
    rule = decisive_rule(forecast, features)
    if rule == "refused":
        return NO_GO, forecast.without_accuracy(), []
    if nothing_accepted(features):  # the grader or the template is wrong, not the models
        return UNKNOWN, forecast.without_accuracy(), []
    if run.cold_start:
        return judge_before_cold_start(forecast, features), forecast, []
    if rule in ("too little", "rising", "undecided"):
        changes = find_changes(model, features, run)
        if changes:
            return CHANGES, forecast, changes
    return judge(forecast, features), forecast, []


def find_changes(
    model: ForecastModel, features: Mapping[str, Estimate], run: RunSettings
) -> list[Advice]:
    """The smallest change of the run's length, or of its rate, that the forecast makes a go.

    Nothing without a pilot: the speed of this run is not known then. Nor a run of which the part
    that was made is too little to count: the forecast of it would know less than that of this one.
    """
    configured = predict(model, features, run)
    for proposed, settings in _proposals(run, configured):
        forecast = predict(model, features, run, settings)
        if PART in configured.views and PART not in forecast.views:
            continue
        if judge(forecast, features) == GO and forecast.change is not None:
            key, value = next(iter(proposed.items()))
            text = f"Set {key} to {value:g}: predicted change then {points(forecast.change)}"
            return [Advice(text, proposed, forecast.change)]
    return []


def _proposals(
    run: RunSettings, forecast: Forecast
) -> Iterator[tuple[dict[str, Any], RunSettings]]:
    """Longer runs; higher rates where even those would get nowhere."""
    if forecast.efolds is None:
        return
    for factor in LONGER:
        steps = factor * run.steps
        yield {"train.steps": steps}, replace(run, steps=steps)
    if forecast.efolds < SLOW:
        for times in FASTER:
            rate = float(f"{times * run.lr:.3g}")
            yield {"optim.lr": rate}, replace(run, lr=rate)


def advise(
    verdict: Verdict,
    forecast: Forecast,
    features: Mapping[str, Estimate],
    findings: Sequence[Finding],
    run: RunFacts,
) -> list[Advice]:
    """What else to change, with the keys that do it, and what would settle an open question.

    Args:
        verdict: of `judge`, or go with changes.
        forecast: of `predict`.
        features: the numbers of the probe.
        findings: on the compatibility of tokens and prompts.
        run: what else the advice depends on.
    """
    advice = [Advice(f"{f.message}: {f.fix}") for f in findings if f.level == "warning"]
    advice += _teacher_advice(verdict, forecast, features, run)
    advice += _longer_answers(features, run)
    if run.support_mass < MIN_SUPPORT_MASS:
        advice.append(
            Advice(
                f"The support of the loss holds only {run.support_mass:.1%} of the student's mass: "
                "add the tail bucket, so that what lies outside cannot drift",
                {"loss.mode": "tail"},
            )
        )
    if verdict == UNKNOWN:
        advice += settle(forecast, features, run)
    return advice


def _longer_answers(features: Mapping[str, Estimate], run: RunFacts) -> list[Advice]:
    """To raise the limits that cut rollouts or answers off, as far as the context goes."""
    cut = features.get("teacher_truncated")
    rollouts = ("rollout.max_new_tokens", run.max_new_tokens)
    limits = [("student's rollouts", run.truncated, rollouts)]
    limits += [("teacher's answers", cut.value, run.answer_limit or rollouts)] if cut else []
    if run.answer_limit is None:  # one limit for both
        limits = [max(limits, key=lambda each: each[1])]
    advice = []
    for who, fraction, (key, limit) in limits:
        if fraction <= MAX_TRUNCATED:
            continue
        text = f"{fraction:.0%} of the {who} are cut off at {limit} tokens: "
        longer = 2 * limit if run.room is None else min(2 * limit, run.room)
        if longer > limit:
            advice.append(Advice(f"{text}raise the limit, then check again", {key: longer}))
        else:
            advice.append(Advice(f"{text}the models' context has no room for more"))
    return advice


def settle(forecast: Forecast, features: Mapping[str, Estimate], run: RunFacts) -> list[Advice]:
    """What would settle a verdict that is not known."""
    change, distribution = forecast.change, forecast.distribution
    if nothing_accepted(features):
        return [] if mostly_cut(features) else [Advice(SETTLE_GRADER)]  # to raise the limit is said
    if only_scores(features):
        return [
            Advice(
                "To settle it: train half of the steps and look at accuracy and overlap before you "
                "continue"
            )
        ]
    if change is None or distribution is None:
        return [Advice("To settle it: give prompts.path an answer column, or an eval set")]
    if run.cold_student is not None:
        student, file = shlex.quote(f"student.model={run.cold_student}"), shlex.quote(run.file)
        return [
            Advice(
                f"To settle it: make the cold start alone (opd coldstart {file}), then check the "
                f"student that it makes: opd check {file} {student} coldstart=null"
            )
        ]
    advice = _more_prompts(change, distribution, run)
    if "pilot_steps" not in features:
        advice.append(
            Advice("To settle it: give the check time for a pilot of the run (a larger --budget)")
        )
    elif not advice:
        advice.append(Advice(f"To settle it: {_more_of_the_run(forecast, features)}"))
    return advice


def _more_of_the_run(forecast: Forecast, features: Mapping[str, Estimate]) -> str:
    """Half or all of the run, which tell more than anything before; by whom they can be made."""
    if made_whole(features):
        return "train, and evaluate on held-out prompts that are many more than those of the check"
    half = "part_steps" in features or features["pilot_path"].value >= NEARLY_HALF
    if PILOT not in forecast.views:  # of which the check makes no part either
        return "train half of the steps and look at accuracy and overlap before you continue"
    return (
        f"a larger --budget, enough for {'all' if half else 'half'} of the run, which the check "
        "then makes on a copy; or train half of it and look at accuracy and overlap before you "
        "continue"
    )


def _more_prompts(change: Estimate, distribution: Distribution, run: RunFacts) -> list[Advice]:
    """To look at more prompts, where that helps and there are more."""
    half, few = (change.high - change.low) / 2, change.n < MIN_PROMPTS
    if few and run.prompts >= run.most_prompts:
        text = f"To settle it: give prompts.path more than its {run.prompts} prompts"
        return [Advice(text)]
    sampling = distribution.sampling > MOSTLY_SAMPLING * half
    if not (few or sampling) or not 0 < run.prompts < run.most_prompts:
        return []
    needed = max(2 * run.prompts, round(run.prompts * (2 * distribution.sampling / half) ** 2))
    needed = min(max(needed, 4 * MIN_PROMPTS if few else 0), run.most_prompts)
    return [
        Advice(
            f"To settle it: check on about {needed} prompts instead of {run.prompts}, with a "
            "larger --budget"
        )
    ]


def _teacher_advice(
    verdict: Verdict, forecast: Forecast, features: Mapping[str, Estimate], run: RunFacts
) -> list[Advice]:
    """Another teacher, or a cold start."""
    cold_start = run.cold_start
    if decisive_rule(forecast, features) == "refused":
        text = "Run opd verify, which examines loss and gradient; look at student.precision"
        return [Advice(text)]
    if verdict == GO or forecast.transfer >= COMPATIBLE or not cold_start_helps(features):
        cold_start = None
    ahead = "gap" in features and features["gap"].value >= MIN_GAP
    if cold_start is not None:
        text = (
            "Begin with a cold start on the teacher's own rollouts; what it brings is not "
            "predicted, check again after it"
        )
        return [Advice(text, dict(cold_start))]
    if verdict == NO_GO and not ahead and features["student_accuracy"].value > 1 - MIN_GAP:
        return [
            Advice("Choose harder prompts: no teacher can be far ahead of this student on these")
        ]
    if verdict == NO_GO and not ahead:
        return [
            Advice(
                "Choose a teacher that is more accurate on these prompts, preferably one of the "
                "student's family that was improved (by reinforcement learning, say) rather than a "
                "bigger one"
            )
        ]
    return []
