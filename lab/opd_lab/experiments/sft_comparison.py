"""E15: on-policy distillation, supervised training on the teacher's rollouts, and both in turn."""

from __future__ import annotations

from dataclasses import dataclass

from opd_lab.checkpoints import CHAIN
from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Curve,
    Experiment,
    Measurement,
    keyed_columns,
)
from opd_lab.experiments.setups import ACCURACY
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.runs import RunResult, Task
from opd_lab.sft_baseline import SFTCurve

OPD, SFT, BOTH = METHODS = ("OPD", "SFT", "SFT, then OPD")
SAME_PATTERN, OTHER_PATTERN = "same pattern", "other pattern"


@dataclass(frozen=True)
class Plan:
    """Who learns from whom for how long, and how much of it is SFT where both methods are used."""

    student: str
    teacher: str
    steps: int
    sft_steps: int
    panel: str


PLANS = {
    SAME_PATTERN: Plan("chain-base", "chain-large-rl", 40, 20, SAME_PATTERN),
    OTHER_PATTERN: Plan("chain-mix03", "chain-other-rl", 120, 80, f"{OTHER_PATTERN}, trace of .03"),
}


@dataclass(frozen=True)
class MethodNumbers:
    """One method: final accuracy, and seconds of training."""

    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Numbers:
    """One seed: numbers of each method by name, with the teacher of either pattern."""

    same_pattern: dict[str, MethodNumbers]
    other_pattern: dict[str, MethodNumbers]


def sft_comparison() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E15",
        "Is it worth it",
        "chain-base learns from chain-large-rl in 40 steps: OPD, SFT on the teacher's rollouts, or "
        "20 of SFT and then OPD; chain-mix03 from chain-other-rl in 120 steps, or 80 of SFT and "
        "then OPD. 64 responses per step. Varied: the method, at equal tokens.",
        "not compared in the paper; its cold start (E6) ends at .125 against .07 (AIME24) without",
        Numbers,
        measure,
        CLAIMS,
        columns(),
        "Seconds are wall-clock time, so those of runs on a busy machine say little; tokens do not "
        "depend on that.",
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """Three methods with a teacher of either pattern."""
    curves, numbers = [], []
    for plan in PLANS.values():
        methods = train(workspace, plan)
        numbers.append(
            {name: MethodNumbers(m.accuracy[-1], m.seconds[-1]) for name, m in methods.items()}
        )
        for name, method in methods.items():
            thousands = [tokens / 1000 for tokens in method.tokens]
            by_tokens = f"{plan.panel}: accuracy by thousand tokens"
            curves.append(Curve(by_tokens, name, thousands, method.accuracy))
            by_seconds = f"{plan.panel}: accuracy by seconds"
            curves.append(Curve(by_seconds, name, method.seconds, method.accuracy))
    return Measurement(Numbers(*numbers), curves)


def train(workspace: Workspace, plan: Plan) -> dict[str, SFTCurve]:
    """Accuracy by steps, tokens and seconds of each method."""
    task = Task(CHAIN)
    pair = plan.student, plan.teacher
    opd = workspace.run(Arm(*pair, length(plan.steps)), task)
    sft = workspace.sft(*pair, task, plan.steps)
    start = workspace.sft(*pair, task, plan.sft_steps)
    rest = length(plan.steps - plan.sft_steps)
    both = workspace.run(Arm(start.path, plan.teacher, rest), task)
    return {
        OPD: on_policy_curve(opd),
        SFT: sft.curve,
        BOTH: on_policy_curve(both, start.curve.tokens[-1], start.curve.seconds[-1]),
    }


def length(steps: int) -> tuple[str, ...]:
    """The change that gives a run its length; none at the lab's own 40."""
    return () if steps == 40 else (f"train.steps={steps}",)


def on_policy_curve(
    result: RunResult, tokens_before: float = 0.0, seconds_before: float = 0.0
) -> SFTCurve:
    """The evaluations of an on-policy run, after what was spent before it."""
    steps, accuracy = result.curve(ACCURACY)
    tokens = [0.0, *result.cumulative_tokens()]
    seconds = [0.0, *result.cumulative_seconds()]
    return SFTCurve(
        steps=steps,
        accuracy=accuracy,
        tokens=[tokens_before + tokens[int(step)] for step in steps],
        seconds=[seconds_before + seconds[int(step)] for step in steps],
    )


def columns() -> tuple[Column[Numbers], ...]:
    """Accuracy by teacher and method, and two times."""
    same: tuple[Column[Numbers], ...] = keyed_columns(
        {method: f"{method}, {SAME_PATTERN}" for method in METHODS},
        lambda n: {method: m.accuracy for method, m in n.same_pattern.items()},
    )
    other: tuple[Column[Numbers], ...] = keyed_columns(
        {method: f"{method}, {OTHER_PATTERN}" for method in METHODS},
        lambda n: {method: m.accuracy for method, m in n.other_pattern.items()},
    )
    return (
        *same,
        *other,
        Column("seconds, OPD", lambda n: n.same_pattern[OPD].seconds),
        Column("seconds, SFT", lambda n: n.same_pattern[SFT].seconds),
    )


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "at equal tokens, same pattern: OPD is at least as accurate as SFT (tolerance .02)",
        lambda n: n.same_pattern[OPD].accuracy >= n.same_pattern[SFT].accuracy - 0.02,
    ),
    Claim(
        "other pattern: cold start + OPD beats OPD alone by .1 or more",
        lambda n: n.other_pattern[BOTH].accuracy - n.other_pattern[OPD].accuracy >= 0.1,
    ),
    Claim(
        "other pattern: cold start + OPD is at least as accurate as SFT (tolerance .02)",
        lambda n: n.other_pattern[BOTH].accuracy >= n.other_pattern[SFT].accuracy - 0.02,
    ),
)
