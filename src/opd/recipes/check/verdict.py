"""From a forecast to a verdict: go, go with changes, not known, or no-go.

The thresholds are those that the check was judged with; docs/check.md has the error rates that
resulted. `opd.recipes.check.reasons` says why, `opd.recipes.check.advice` what to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from opd.core.stats import Estimate
from opd.recipes.check.forecast import Forecast
from opd.training.loop import MAX_SKIPPED

Verdict = Literal["go", "go with changes", "not known", "don't"]
GO: Final = "go"
CHANGES: Final = "go with changes"
UNKNOWN: Final = "not known"
NO_GO: Final = "don't"

MIN_GAP = 0.05  # a teacher less far ahead than this has nothing to teach
WORTHWHILE, NEGLIGIBLE = 0.5, 0.2  # fractions of the gap recovered: worth a run; not worth one
MAX_RISK = 0.08  # probability of being wrong that a go or no-go may carry
MIN_PROMPTS = 8  # that a go or a no-go rests on
WHOLE = 0.99  # of the run's sum of learning rates: all of it
LITTLE = 0.25  # probability of a change of `MIN_GAP` below which there is nothing to gain

Rule = Literal[
    "refused",
    "unmeasured",
    "few",
    "worse",
    "falls",
    "level",
    "recovers",
    "rising",
    "too little",
    "undecided",
]
"""What a verdict rests on, which is its first reason."""


def judge(forecast: Forecast, features: Mapping[str, Estimate]) -> Verdict:
    """The verdict on a pair whose tokens and prompts are compatible, run as it is configured.

    Never `CHANGES`: that takes a change that the forecast makes a go (see
    `opd.recipes.check.advice.find_changes`).
    """
    verdicts: dict[Rule, Verdict] = {
        "refused": NO_GO,
        "unmeasured": UNKNOWN,
        "few": UNKNOWN,
        "worse": NO_GO,
        "falls": NO_GO,
        "level": NO_GO,
        "recovers": GO,
        "rising": UNKNOWN,
        "too little": NO_GO,
        "undecided": UNKNOWN,
    }
    return verdicts[decisive_rule(forecast, features)]


def judge_before_cold_start(forecast: Forecast, features: Mapping[str, Estimate]) -> Verdict:
    """The verdict on a run that begins with a cold start.

    The forecast is of on-policy training of the student as it is, and what the cold start makes of
    that student is not predicted. What is predicted to fail without it is therefore not known with
    it; unless the steps cannot be made, or the teacher is not ahead, which stays so.
    """
    verdict, rule = judge(forecast, features), decisive_rule(forecast, features)
    if verdict == NO_GO and rule != "refused" and features["gap"].value >= MIN_GAP:
        return UNKNOWN
    return verdict


def decisive_rule(forecast: Forecast, features: Mapping[str, Estimate]) -> Rule:
    """The rule that decides: the first of these that holds.

    - refused: no step of the pilot was made, of as many as end a run.
    - unmeasured: without answers.
    - few: fewer than `MIN_PROMPTS` prompts.
    - falls: the whole interval of the change is below zero, in the range of the fit or not.
    - worse: the teacher is less accurate, with certainty, and no gain is predicted all the same.
    - level: the teacher is not ahead by `MIN_GAP`, and a gain of as much is unlikely.
    - recovers: `WORTHWHILE` of the gap is predicted, less than `NEGLIGIBLE` of it is unlikely, and
      the pair is in the range of the fit or a pilot has measured it.
    - rising: `WORTHWHILE` of the gap is unlikely, but the pilot raised accuracy (`pilot_raises`).
    - too little: `WORTHWHILE` of the gap is unlikely, of a pair in the range of the fit.
    - undecided: everything else.
    """
    change, distribution = forecast.change, forecast.distribution
    refused = "pilot_refused" in features and features["pilot_refused"].value >= 1
    if refused and features["pilot_steps"].value >= MAX_SKIPPED:
        return "refused"
    if change is None or distribution is None:
        return "unmeasured"
    if refused or part_breaks_off(features):
        return "undecided"
    gap = features["gap"]
    if gap.n < MIN_PROMPTS:
        return "few"
    if change.high < 0:
        return "falls"
    if gap.high < 0 and change.value < MIN_GAP:
        return "worse"
    if gap.value < MIN_GAP:
        unlikely = 1 - distribution.below(MIN_GAP) <= LITTLE
        return "level" if unlikely and change.value < MIN_GAP else "undecided"
    known = not forecast.out_of_range or len(distribution.combination.errors) > 1
    assert forecast.least is not None
    likely = distribution.below(NEGLIGIBLE * gap.value) <= MAX_RISK and forecast.least > -MIN_GAP
    if known and likely and change.value >= WORTHWHILE * gap.value:
        return "recovers"
    if not forecast.out_of_range and 1 - distribution.below(WORTHWHILE * gap.value) <= MAX_RISK:
        return "rising" if pilot_raises(features) else "too little"
    return "undecided"


def pilot_raises(features: Mapping[str, Estimate]) -> bool:
    """Whether answers sampled after the pilot's steps are more accurate, with certainty.

    Of the run's own rate or of the raised one; after a part of the run, if one was made, whatever
    the first steps did. Large models learn more from a step than the tiny ones of the fit: where a
    rise was measured, a prediction of little is not enough for a no-go.
    """
    names: tuple[str, ...] = ("pilot_resampled", "stretch_resampled")
    if "part_resampled" in features:
        names = ("part_resampled",)
    return any(name in features and features[name].low > 0 for name in names)


def made_whole(features: Mapping[str, Estimate]) -> bool:
    """Whether the check made all of the run's own steps on its copy."""
    return "part_path" in features and features["part_path"].value >= WHOLE


def part_breaks_off(features: Mapping[str, Estimate]) -> bool:
    """Whether so many steps of a part of the run were refused that the run may end there."""
    if "part_refused" not in features:
        return False
    refused = features["part_refused"].value * features["part_steps"].value
    return round(refused) >= MAX_SKIPPED


def cold_start_helps(features: Mapping[str, Estimate]) -> bool:
    """Whether a cold start has something to teach: the teacher is more accurate on its own.

    On-policy training teaches the answers that are likely under the student; a cold start teaches
    the others too, so a gap over all of them is enough.
    """
    if "gap" not in features:
        return False
    gap = features["gap"]
    return gap.low > 0 and gap.value >= MIN_GAP


def rank(verdict: Verdict, forecast: Forecast | None) -> tuple[int, float, float]:
    """Higher is better: the verdict, then what is predicted (see `promise`)."""
    order = {GO: 3, CHANGES: 2, UNKNOWN: 1, NO_GO: 0}[verdict]
    return order, *((0.0, 0.0) if forecast is None else promise(forecast))


def promise(forecast: Forecast) -> tuple[float, float]:
    """Higher is better: the predicted change, 0 without answers; then the transfer."""
    return 0.0 if forecast.change is None else forecast.change.value, forecast.transfer


def nothing_accepted(features: Mapping[str, Estimate]) -> bool:
    """Whether both models answered, and nothing that either said was graded correct.

    Not where another candidate's answers were: then the grader can accept one.
    """
    answers = ("student_accuracy", "teacher_accuracy")
    graded = (*answers, "pass_at_n", "greedy_accuracy", "others_accuracy")
    right = any(features[name].value for name in graded if name in features)
    return all(name in features for name in answers) and not right
