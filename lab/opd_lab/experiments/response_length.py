"""E8: longer responses teach more, until they are longer than the teacher's competence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd_lab.checkpoints import CHAIN
from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Curve,
    Experiment,
    Measurement,
    keyed_columns,
    metric_curve,
)
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.runs import RunResult, Task

DEPTHS = (2, 4, 6, 8)
DEEPEST = max(DEPTHS)
LIMITS = (4, 8, 16)  # response tokens; problems of 8 steps need 27
NO_LIMIT = 27
DEEP_PAIR = ("chain-deep", "chain-deep-rl")
# Training responses may be cut short, those of evaluations never.
WHOLE_EVALS = tuple(
    f"eval.{i}.max_new_tokens={Task(CHAIN, DEEPEST).max_new_tokens}" for i in range(len(DEPTHS))
)


@dataclass(frozen=True)
class Numbers:
    """Mean accuracy of one seed over all depths; reverse KL by position, in training at 8 steps.

    Attributes:
        before: mean accuracy before training.
        by_depth: after training at a depth.
        by_limit: after training at 8 steps with responses cut at a number of tokens.
        early_kl: of the first quarter of positions, at the end of training.
        late_kl: of the last quarter.
    """

    before: float
    by_depth: dict[int, float]
    by_limit: dict[int, float]
    early_kl: float
    late_kl: float


def response_length() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E8",
        "Response length and depth",
        f"chain-deep (2 to {DEEPEST} steps) learns from chain-deep-rl (improved at 4 steps alone). "
        f"Varied: steps of the training problems; and the longest response on problems of "
        f"{DEEPEST} steps.",
        "3K and 7K tokens best; .5K and 1K too little signal; 10K and 15K decline, instability "
        "starts at late positions",
        Numbers,
        measure,
        CLAIMS,
        columns(),
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """A run per depth, and one per limit at the greatest depth."""
    by_depth = {
        depth: workspace.run(Arm(*DEEP_PAIR, WHOLE_EVALS), deep_task(depth)) for depth in DEPTHS
    }
    by_limit = {
        limit: workspace.run(
            Arm(*DEEP_PAIR, (f"rollout.max_new_tokens={limit}", *WHOLE_EVALS)), deep_task(DEEPEST)
        )
        for limit in LIMITS
    }
    deepest = by_depth[DEEPEST]
    early, late = quarters(position_metrics(deepest))
    numbers = Numbers(
        before=mean_accuracy(deepest)[1][0],
        by_depth={depth: mean_accuracy(result)[1][-1] for depth, result in by_depth.items()},
        by_limit={limit: mean_accuracy(result)[1][-1] for limit, result in by_limit.items()},
        early_kl=float(np.mean([deepest.last(name) for name in early])),
        late_kl=float(np.mean([deepest.last(name) for name in late])),
    )
    return Measurement(numbers, [*run_curves(by_depth, by_limit), *mean_curves(numbers)])


def deep_task(depth: int) -> Task:
    """Training at one depth, evaluation at all."""
    return Task(CHAIN, depth, DEPTHS, test=256)


def run_curves(by_depth: dict[int, RunResult], by_limit: dict[int, RunResult]) -> list[Curve]:
    """Accuracy at the greatest depth by step, and reverse KL by position."""
    metric = f"eval/n{DEEPEST}/accuracy"
    panel = f"accuracy at {DEEPEST} steps"
    return [
        *(metric_curve(run, metric, panel, f"depth {depth}") for depth, run in by_depth.items()),
        *kl_curves(by_depth[DEEPEST]),
        *(
            metric_curve(run, metric, f"{panel}, responses cut", str(limit))
            for limit, run in by_limit.items()
        ),
    ]


def mean_curves(numbers: Numbers) -> list[Curve]:
    """Mean accuracy by depth and by limit."""
    by_limit = numbers.by_limit | {NO_LIMIT: numbers.by_depth[DEEPEST]}
    means = {"training depth": numbers.by_depth, "response limit": by_limit}
    return [
        Curve(f"mean accuracy by {name}", "after", [*map(float, values)], [*values.values()])
        for name, values in means.items()
    ]


def mean_accuracy(result: RunResult) -> tuple[list[float], list[float]]:
    """Steps, and the mean accuracy over the held-out depths at each."""
    curves = [result.curve(f"eval/n{depth}/accuracy") for depth in DEPTHS]
    return curves[0][0], np.mean([values for _, values in curves], axis=0).tolist()


def kl_curves(result: RunResult) -> list[Curve]:
    """Reverse KL by relative position, at the start and the end."""
    names = position_metrics(result)
    middles = [5.0 + 10 * i for i in range(len(names))]
    panel = f"reverse KL by position (%), depth {DEEPEST}"
    return [
        Curve(panel, "start", middles, [result.first(name) for name in names]),
        Curve(panel, "end", middles, [result.last(name) for name in names]),
    ]


def position_metrics(result: RunResult) -> list[str]:
    """Names of the reverse KL by tenth of the response, first tenth first."""
    prefix = "diag/reverse_kl@rel"
    names = {name for row in result.metrics() for name in row if name.startswith(prefix)}
    return sorted(names, key=lambda name: int(name.removeprefix(prefix).split("-")[0]))


def quarters(names: list[str]) -> tuple[list[str], list[str]]:
    """The first and the last quarter of some names."""
    size = max(1, len(names) // 4)
    return names[:size], names[-size:]


def columns() -> tuple[Column[Numbers], ...]:
    """Mean accuracies, and reverse KL early and late."""
    by_depth: tuple[Column[Numbers], ...] = keyed_columns(
        {depth: f"trained at {depth} steps" for depth in DEPTHS}, lambda n: n.by_depth
    )
    by_limit: tuple[Column[Numbers], ...] = keyed_columns(
        {limit: f"trained at {DEEPEST} steps, cut at {limit} tokens" for limit in LIMITS},
        lambda n: n.by_limit,
    )
    return (
        Column("mean accuracy over 2, 4, 6, 8 steps, before", lambda n: n.before),
        *by_depth,
        *by_limit,
        Column(f"reverse KL at {DEEPEST} steps, first quarter, end", lambda n: n.early_kl),
        Column("last quarter", lambda n: n.late_kl),
    )


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "best in the middle: a depth inside the range beats both its ends",
        lambda n: max(n.by_depth[4], n.by_depth[6]) > max(n.by_depth[2], n.by_depth[8]),
    ),
    Claim(
        "very short responses teach little: the shortest limit gains less than half of the best",
        lambda n: n.by_limit[4] - n.before < 0.5 * (max(n.by_limit.values()) - n.before),
    ),
    Claim(
        "trouble sits late: at the end reverse KL of the last quarter is twice that of the first",
        lambda n: n.late_kl >= 2 * n.early_kl,
    ),
)
