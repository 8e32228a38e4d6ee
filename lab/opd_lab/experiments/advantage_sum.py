"""E21: return-to-go of the published code against the immediate reward of a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opd.training.session import Session
from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Curve,
    Experiment,
    Measurement,
    keyed_columns,
    metric_curve,
)
from opd_lab.experiments.setups import ACCURACY
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.more_checkpoints import PLAIN
from opd_lab.return_to_go import with_group_scores, with_return_to_go
from opd_lab.runs import RunResult, Task

PAIR = ("quick-base", "quick-large-clean")
STEPS = 40
RATES = ("1e-3", "2e-3", "4e-3")
TASK = Task(PLAIN)  # 512 held-out problems, validation and test
NOW, SCORED, TO_GO = "immediate", "group scores", "return-to-go"
ARMS: dict[str, Callable[[Session], Session] | None] = {
    NOW: None,
    SCORED: with_group_scores,
    TO_GO: with_return_to_go,
}
LABELS = {
    NOW: "immediate reward",
    SCORED: "z-scores of immediate rewards",
    TO_GO: "return-to-go of z-scores",
}


@dataclass(frozen=True)
class Numbers:
    """One seed; accuracies on the test half by arm, each at its best rate by the other half."""

    before: float
    after: dict[str, float]
    half: dict[str, float]  # after half of the steps
    rate: dict[str, float]


def advantage_sum() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E21",
        "Return-to-go",
        f"{PAIR[0]} learns from {PAIR[1]} on sampled tokens (loss.support=sampled). Varied: the "
        "advantage of a token: its own reward log q - log p; z-scores of those within a prompt's "
        "group; sums of the z-scores to the end (token_grpo of the published code). Each at "
        f"its best of {len(RATES)} rates ({', '.join(RATES)}) by 256 validation problems; test on "
        f"256 others; {STEPS} steps of 16 x 4 responses.",
        "not compared in the paper; its runs use the immediate reward, its code has both",
        Numbers,
        measure,
        CLAIMS,
        columns(),
        "Made by a teacher around the teacher (opd_lab.return_to_go): the product has the "
        "immediate reward alone.",
        beyond=True,
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """Every arm at every rate."""
    chosen: dict[str, RunResult] = {}
    rates: dict[str, float] = {}
    for name, edit in ARMS.items():
        results = {rate: workspace.run(arm_of(rate, edit), TASK) for rate in RATES}
        best = max(RATES, key=lambda rate: float(results[rate].correct(STEPS)[::2].mean()))
        chosen[name], rates[name] = results[best], float(best)
    numbers = Numbers(
        before=tested(chosen[NOW], 0),
        after={name: tested(result, STEPS) for name, result in chosen.items()},
        half={name: tested(result, STEPS // 2) for name, result in chosen.items()},
        rate=rates,
    )
    curves: list[Curve] = [
        metric_curve(result, ACCURACY, "accuracy, both halves", LABELS[name])
        for name, result in chosen.items()
    ]
    return Measurement(numbers, curves)


def arm_of(rate: str, edit: Callable[[Session], Session] | None) -> Arm:
    """One run."""
    changes = (
        "loss.support=sampled",
        f"train.steps={STEPS}",
        "eval.0.every=20",
        f"optim.lr={rate}",
    )
    return Arm(*PAIR, changes, edit)


def tested(result: RunResult, step: int) -> float:
    """Accuracy on the test half after a step."""
    return float(result.correct(step)[1::2].mean())


def columns() -> tuple[Column[Numbers], ...]:
    """Accuracy by arm, differences, rates."""
    return (
        Column("accuracy before", lambda n: n.before),
        *keyed_columns(LABELS, lambda n: n.after),
        Column("return-to-go minus immediate", lambda n: n.after[TO_GO] - n.after[NOW]),
        *keyed_columns(
            {name: f"after {STEPS // 2} steps, {label}" for name, label in LABELS.items()},
            lambda n: n.half,
        ),
        *keyed_columns(
            {name: f"rate, {label}" for name, label in LABELS.items()}, lambda n: n.rate
        ),
    )


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "the immediate reward is at least .05 more accurate than return-to-go at the end",
        lambda n: n.after[NOW] - n.after[TO_GO] >= 0.05,
    ),
    Claim(
        "and after half of the steps",
        lambda n: n.half[NOW] - n.half[TO_GO] >= 0.05,
    ),
    Claim(
        "it is the sum, not the z-scores: these alone are within .05 of the immediate reward",
        lambda n: abs(n.after[NOW] - n.after[SCORED]) <= 0.05,
    ),
)
