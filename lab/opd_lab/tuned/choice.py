"""The rate of each arm by validation, and what its student then does on the test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from opd.core import stats
from opd_lab.tuned.regimes import OPD_RATES, REGIMES, TEACHER, Arm
from opd_lab.tuned.study import Record
from opd_lab.tuned.training import Point

Budget = Literal["half of the tokens", "equal tokens", "equal seconds"]
BUDGETS: tuple[Budget, ...] = ("half of the tokens", "equal tokens", "equal seconds")
SLACK = 1.05  # an evaluation may lie this factor beyond its budget: answers differ in length
COMPARED: tuple[Arm, Arm] = ("OPD", "SFT")
PRICES = (1, 10, 100)  # what a second of the teacher costs, in seconds of the student


@dataclass(frozen=True)
class Chosen:
    """The student of one arm, regime and seed at a budget.

    Attributes:
        rate: chosen by validation among the arm's settings.
        edge: the rate is the smallest or the largest that was tried.
        point: the student.
    """

    rate: float
    edge: bool
    point: Point


def spent(point: Point, price: float) -> float:
    """Seconds, with those of the teacher at a price."""
    return point.seconds + (price - 1) * point.teacher_seconds


def plain_budget(records: Sequence[Record], regime: str, seed: int, price: float) -> float:
    """Seconds of plain training at a price of the teacher: the mean over its rates."""
    return float(np.mean([spent(r.points[-1], price) for r in _of(records, regime, "OPD", seed)]))


def choose(
    records: Sequence[Record],
    regime: str,
    arm: Arm,
    seed: int,
    budget: Budget,
    price: float = 1.0,
) -> Chosen | None:
    """An arm at its best rate; None if no student of it is within the budget.

    Args:
        records: of the study.
        regime: name in `REGIMES`.
        arm: which one.
        seed: which one.
        budget: what is equal.
        price: of a second of the teacher; matters with `equal seconds` alone.
    """
    plain = _of(records, regime, "OPD", seed)
    tokens = float(np.mean([record.points[-1].tokens for record in plain]))
    share = 0.5 if budget == "half of the tokens" else 1.0
    seconds = plain_budget(records, regime, seed, price)

    def affordable(point: Point) -> bool:
        if point.budget not in ("", budget):
            return False
        if budget == "equal seconds":
            return spent(point, price) <= SLACK * seconds
        return point.tokens <= SLACK * share * tokens

    within_budget = []
    for record in _of(records, regime, arm, seed):
        within = [point for point in record.points[1:] if affordable(point)]
        if within:
            within_budget.append((record.setting, within[-1]))
    if not within_budget:
        return None
    setting, point = max(within_budget, key=lambda student: student[1].accuracy["validation"])
    numbers = sorted(one.setting for one, _ in within_budget)
    return Chosen(setting.rate, setting.setting in (numbers[0], numbers[-1]), point)


def students(
    records: Sequence[Record], regime: str, arm: Arm, budget: Budget, price: float = 1.0
) -> dict[int, Chosen]:
    """The chosen students of an arm by seed; seeds without one within the budget are left out."""
    by_seed = {
        seed: choose(records, regime, arm, seed, budget, price)
        for seed in seeds_of(records, regime, arm)
    }
    return {seed: one for seed, one in by_seed.items() if one is not None}


def over_seeds(
    records: Sequence[Record],
    regime: str,
    arm: Arm,
    budget: Budget,
    name: str = "test",
) -> list[float]:
    """Accuracy of an arm on one held-out set by seed, seeds without such a student left out."""
    chosen = students(records, regime, arm, budget)
    return [one.point.accuracy[name] for one in chosen.values()]


def seeds_of(records: Sequence[Record], regime: str, arm: Arm) -> list[int]:
    """Seeds on which an arm of a regime was trained at every rate, and plain training too."""
    counts: dict[tuple[Arm, int], int] = {}
    for record in records:
        if record.setting.regime == regime:
            key = record.setting.arm, record.setting.seed
            counts[key] = counts.get(key, 0) + 1
    return sorted(
        seed
        for (one, seed), count in counts.items()
        if one == arm and count == counts.get(("OPD", seed)) == len(OPD_RATES)
    )


def difference(
    records: Sequence[Record],
    regime: str,
    budget: Budget,
    *,
    price: float = 1.0,
    name: str = "test",
) -> stats.Estimate | None:
    """OPD minus SFT over the seeds of both, with Student's interval; None where one is missing."""
    a, b = (students(records, regime, arm, budget, price) for arm in COMPARED)
    both = sorted(set(a) & set(b))
    if not both:
        return None
    values = [a[seed].point.accuracy[name] - b[seed].point.accuracy[name] for seed in both]
    return stats.mean(np.array(values))


def teacher_accuracy(records: Sequence[Record], regime: str, name: str = "test") -> list[float]:
    """The teacher's accuracy by seed."""
    return [
        record.points[0].accuracy[name]
        for record in records
        if (record.setting.regime, record.setting.arm) == (regime, TEACHER)
    ]


def before(records: Sequence[Record], regime: str, name: str = "test") -> list[float]:
    """The student's accuracy before training by seed."""
    return [
        _of(records, regime, "OPD", seed)[0].points[0].accuracy[name]
        for seed in seeds_of(records, regime, "OPD")
    ]


def trained_regimes(records: Sequence[Record]) -> list[str]:
    """Regimes in which both methods have a whole seed, in order."""
    return [r for r in REGIMES if all(seeds_of(records, r, arm) for arm in COMPARED)]


def _of(records: Sequence[Record], regime: str, arm: Arm, seed: int) -> list[Record]:
    wanted = (regime, arm, seed)
    return [
        record
        for record in records
        if (record.setting.regime, record.setting.arm, record.setting.seed) == wanted
    ]
