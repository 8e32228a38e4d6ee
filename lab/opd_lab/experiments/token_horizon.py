"""E13: what a shorter token horizon saves, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Curve,
    Experiment,
    Measurement,
    keyed_columns,
)
from opd_lab.experiments.response_length import (
    DEEP_PAIR,
    DEEPEST,
    WHOLE_EVALS,
    deep_task,
    mean_accuracy,
)
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.runs import RunResult
from opd_lab.short_horizon import with_short_horizon

STEPS, FEWER = 40, 25
CAP, TOLERANCE = 16, 0.02
PLAIN, SHORT, CAPPED, PRUNED = "plain", "short", "cap", "prune"
ARMS: dict[str, tuple[int, tuple[str, ...]]] = {
    PLAIN: (STEPS, ()),
    SHORT: (FEWER, ()),  # what fewer steps alone come to
    CAPPED: (STEPS, (f"horizon.cap={CAP}",)),
    PRUNED: (FEWER, ("horizon.prune={}",)),  # with the numbers of `with_short_horizon`
}
LABELS = {
    PLAIN: f"plain, {STEPS} steps",
    SHORT: f"plain, {FEWER} steps",
    CAPPED: f"cut at {CAP} tokens, {STEPS} steps",
    PRUNED: f"pruned where the overlap ends, {FEWER} steps",
}


@dataclass(frozen=True)
class ArmNumbers:
    """One run: mean accuracy over the held-out depths, and completion tokens trained on."""

    before: float
    accuracy: float
    tokens: float


@dataclass(frozen=True)
class Numbers:
    """One seed.

    Attributes:
        arms: by name.
        late_gradient: fraction from the last half of positions, plain training.
        teacher: accuracy of the teacher at the depth that is trained.
    """

    arms: dict[str, ArmNumbers]
    late_gradient: float
    teacher: float

    def saved(self, arm: str) -> float:
        """Fraction of the tokens of plain training that an arm does without."""
        return 1 - self.arms[arm].tokens / self.arms[PLAIN].tokens


def token_horizon() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E13",
        "What a shorter token horizon saves",
        f"{DEEP_PAIR[0]} learns from {DEEP_PAIR[1]} on problems of {DEEPEST} steps (the teacher "
        "was improved at 2 to 5). 64 responses per step. Varied: how far they go, how far they "
        "count.",
        "Prune-OPD (not this paper): 37.6 to 68 % less time at equal or better accuracy",
        Numbers,
        measure,
        (saves_tokens(PRUNED), saves_tokens(CAPPED)),
        columns(),
        "The teacher's accuracy at the trained depth stands in the table: what late tokens are "
        "worth depends on it (E8).",
        beyond=True,
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """One run per arm."""
    results = {
        name: workspace.run(
            Arm(
                *DEEP_PAIR,
                (f"train.steps={steps}", *WHOLE_EVALS, *changes),
                with_short_horizon if name == PRUNED else None,
            ),
            deep_task(DEEPEST),
        )
        for name, (steps, changes) in ARMS.items()
    }
    arms, curves = {}, []
    for name, result in results.items():
        steps, accuracy = mean_accuracy(result)
        tokens = [0.0, *result.cumulative_tokens()]
        arms[name] = ArmNumbers(accuracy[0], accuracy[-1], tokens[-1])
        thousands = [tokens[int(step)] / 1000 for step in steps]
        curves.append(Curve("mean accuracy by thousand tokens", LABELS[name], thousands, accuracy))
    return Measurement(
        Numbers(
            arms,
            late_gradient(results[PLAIN]),
            workspace.accuracy_at(DEEP_PAIR[1], DEEPEST),
        ),
        curves,
    )


def late_gradient(result: RunResult) -> float:
    """Fraction of the gradient that comes from the second half of each response, over the run."""
    names = [f"diag/gradient_share@rel{i}-{i + 10}" for i in range(50, 100, 10)]
    updates = [row for row in result.metrics() if "train/loss" in row]
    return float(sum(np.mean([row.get(name, 0.0) for row in updates]) for name in names))


def saves_tokens(arm: str) -> Claim[Numbers]:
    """An arm does with fewer tokens, at equal accuracy."""
    return Claim(
        f"{LABELS[arm]}: at least 35 % of the tokens are saved and mean accuracy ends at most "
        f"{TOLERANCE} below plain",
        lambda n: (
            n.saved(arm) >= 0.35 and n.arms[arm].accuracy >= n.arms[PLAIN].accuracy - TOLERANCE
        ),
    )


def columns() -> tuple[Column[Numbers], ...]:
    """Accuracy and saved tokens by arm."""
    accuracy: tuple[Column[Numbers], ...] = keyed_columns(
        LABELS, lambda n: {name: arm.accuracy for name, arm in n.arms.items()}
    )
    saved: tuple[Column[Numbers], ...] = keyed_columns(
        {arm: f"tokens saved, {label}" for arm, label in LABELS.items() if arm != PLAIN},
        lambda n: {arm: n.saved(arm) for arm in n.arms},
    )
    return (
        Column(f"teacher at {DEEPEST} steps", lambda n: n.teacher),
        Column("mean accuracy over 2, 4, 6, 8 steps, before", lambda n: n.arms[PLAIN].before),
        *accuracy,
        *saved,
        Column(
            "fraction of the gradient from the last half of positions, plain",
            lambda n: n.late_gradient,
        ),
    )
