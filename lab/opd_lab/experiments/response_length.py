"""E8: how long responses should be, with a teacher lost beyond its horizon and one that is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from opd_lab.checkpoints import CHAIN
from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Curve,
    Experiment,
    Measurement,
    keyed_columns,
)
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.runs import RunResult, Task

DEPTHS = (2, 4, 6, 8)
DEEPEST = max(DEPTHS)
LIMITS = (4, 8, 16)  # response tokens; problems of 8 steps need 27
NO_LIMIT = 27
ALL_LIMITS = (*LIMITS, NO_LIMIT)
LOST, ABLE = "chain-deep-lost", "chain-deep-able"
DEEP_PAIR = ("chain-deep", LOST)
LENGTH = "rollout/length"
LATE = {
    "early_kl": "reverse KL at the end, first quarter",
    "late_kl": "reverse KL at the end, last quarter",
    "length": "length at the end over length at the start",
}
# Training responses may be cut short, those of evaluations never.
WHOLE_EVALS = tuple(
    f"eval.{i}.max_new_tokens={Task(CHAIN, DEEPEST).max_new_tokens}" for i in range(len(DEPTHS))
)


@dataclass(frozen=True)
class Horizon:
    """One teacher, and its students at every longest response.

    Attributes:
        teacher: accuracy of the teacher by steps of the problem.
        after: mean accuracy of the student over all depths, by the longest response.
        early_kl: reverse KL of the first quarter of positions at the end, responses not cut.
        late_kl: of the last quarter.
        length: mean response at the end over the mean response at the start, not cut.
    """

    teacher: dict[int, float]
    after: dict[int, float]
    early_kl: float
    late_kl: float
    length: float


@dataclass(frozen=True)
class Numbers:
    """One seed: mean accuracy before training, and either teacher."""

    before: float
    lost: Horizon
    able: Horizon


def response_length() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E8",
        "Response length",
        f"chain-deep (2 to {DEEPEST} steps) learns on problems of {DEEPEST} steps from two "
        f"teachers that were improved on right chains: of 2 to 5 steps alone ({LOST}), and of "
        f"all depths ({ABLE}). Varied: the longest response, and how far the teacher can follow.",
        "3K and 7K tokens best; .5K and 1K too little signal; 10K and 15K decline, instability "
        "starts at late positions",
        Numbers,
        measure,
        CLAIMS,
        columns(),
        "Every limit counts as a limit, the whole response included; claim and code compare the "
        "same numbers.",
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """A run per teacher and limit."""
    horizons, curves, before = [], list[Curve](), 0.0
    for name in (LOST, ABLE):
        runs = {limit: workspace.run(arm(name, limit), deep_task(DEEPEST)) for limit in ALL_LIMITS}
        whole = runs[NO_LIMIT]
        early, late = quarters(position_metrics(whole))
        before = mean_accuracy(whole)[1][0]
        horizon = Horizon(
            teacher={d: workspace.accuracy_at(name, d) for d in DEPTHS},
            after={limit: mean_accuracy(result)[1][-1] for limit, result in runs.items()},
            early_kl=float(np.mean([whole.last(metric) for metric in early])),
            late_kl=float(np.mean([whole.last(metric) for metric in late])),
            length=whole.last(LENGTH) / whole.first(LENGTH),
        )
        horizons.append(horizon)
        curves += curves_of(name, horizon, whole)
    return Measurement(Numbers(before, *horizons), curves)


def arm(teacher: str, limit: int) -> Arm:
    """The run of a teacher and a longest response."""
    cut = () if limit == NO_LIMIT else (f"rollout.max_new_tokens={limit}",)
    return Arm("chain-deep", teacher, (*cut, *WHOLE_EVALS))


def curves_of(name: str, horizon: Horizon, whole: RunResult) -> list[Curve]:
    """Accuracies by limit and by depth, and reverse KL by position."""
    by_depth, by_limit = horizon.teacher, horizon.after
    return [
        Curve(
            "mean accuracy by longest response", name, [*map(float, by_limit)], [*by_limit.values()]
        ),
        Curve(
            "accuracy of the teacher by steps", name, [*map(float, by_depth)], [*by_depth.values()]
        ),
        *kl_curves(name, whole),
    ]


def deep_task(depth: int) -> Task:
    """Training at one depth, evaluation at all."""
    return Task(CHAIN, depth, DEPTHS, test=256)


def mean_accuracy(result: RunResult) -> tuple[list[float], list[float]]:
    """Steps, and the mean accuracy over the held-out depths at each."""
    curves = [result.curve(f"eval/n{depth}/accuracy") for depth in DEPTHS]
    return curves[0][0], np.mean([values for _, values in curves], axis=0).tolist()


def kl_curves(name: str, result: RunResult) -> list[Curve]:
    """Reverse KL by relative position, at the start and the end."""
    names = position_metrics(result)
    middles = [5.0 + 10 * i for i in range(len(names))]
    panel = "reverse KL by position (%)"
    return [
        Curve(panel, f"{name}, start", middles, [result.first(metric) for metric in names]),
        Curve(panel, f"{name}, end", middles, [result.last(metric) for metric in names]),
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
    """Teachers by depth, students by limit, and what happens late."""
    sides: dict[str, Callable[[Numbers], Horizon]] = {
        "lost": lambda n: n.lost,
        "able": lambda n: n.able,
    }
    all_columns = [
        Column[Numbers]("mean accuracy over 2, 4, 6, 8 steps, before", lambda n: n.before)
    ]
    for label, side in sides.items():
        all_columns += keyed_columns(
            {d: f"teacher {label} at {d} steps" for d in DEPTHS}, _part(side, "teacher")
        )
        all_columns += keyed_columns(
            {limit: f"its student, longest response {limit}" for limit in ALL_LIMITS},
            _part(side, "after"),
        )
        for name, text in LATE.items():
            all_columns.append(Column(f"{text}, {label}", _part(side, name)))
    return tuple(all_columns)


def _part(side: Callable[[Numbers], Horizon], name: str) -> Callable[[Numbers], Any]:
    return lambda n: getattr(side(n), name)


def _inside_beats_ends(horizon: Horizon) -> bool:
    """A limit between the shortest and the whole response is better than both."""
    inside = max(horizon.after[limit] for limit in LIMITS[1:])
    return inside > max(horizon.after[LIMITS[0]], horizon.after[NO_LIMIT])


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "a teacher that is lost beyond its horizon (below .5 at 8 steps, .75 or more at 4): a "
        "limit inside the range beats the shortest and the whole response",
        lambda n: (
            n.lost.teacher[8] < 0.5 <= n.lost.teacher[4] - 0.25 and _inside_beats_ends(n.lost)
        ),
    ),
    Claim(
        "a teacher that is not (.75 or more at 8 steps): the whole response is best, or .03 from "
        "it",
        lambda n: (
            n.able.teacher[8] >= 0.75
            and n.able.after[NO_LIMIT] >= max(n.able.after.values()) - 0.03
        ),
    ),
    Claim(
        "very short responses teach little: with either teacher the shortest limit gains less than "
        "half of the best",
        lambda n: all(
            h.after[LIMITS[0]] - n.before < 0.5 * (max(h.after.values()) - n.before)
            for h in (n.lost, n.able)
        ),
    ),
    Claim(
        "trouble sits late with the lost teacher: at the end reverse KL of the last quarter is "
        "twice that of the first",
        lambda n: n.lost.late_kl >= 2 * n.lost.early_kl,
    ),
)
