"""The rate of each arm by validation, and what its student then does on the test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from opd.core import stats
from opd_lab.tuned.regimes import ARMS, OPD_RATES, REGIMES, TEACHER, Arm
from opd_lab.tuned.study import Record
from opd_lab.tuned.training import Point

Budget = Literal["half of the tokens", "equal tokens", "equal seconds"]
BUDGETS: tuple[Budget, ...] = ("half of the tokens", "equal tokens", "equal seconds")
SLACK = 1.05  # an evaluation may lie this factor beyond its budget: answers differ in length
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
        if budget == "equal seconds":
            return spent(point, price) <= SLACK * seconds
        return point.tokens <= SLACK * share * tokens

    students = []
    for record in _of(records, regime, arm, seed):
        within = [point for point in record.points[1:] if affordable(point)]
        if within:
            students.append((record.setting, within[-1]))
    if not students:
        return None
    setting, point = max(students, key=lambda student: student[1].accuracy["validation"])
    numbers = sorted(one.setting for one, _ in students)
    return Chosen(setting.rate, setting.setting in (numbers[0], numbers[-1]), point)


def over_seeds(
    records: Sequence[Record],
    regime: str,
    arm: Arm,
    budget: Budget,
    price: float = 1.0,
    name: str = "test",
) -> list[float]:
    """Accuracy of an arm on one held-out set by seed, seeds without such a student left out."""
    chosen = [
        choose(records, regime, arm, seed, budget, price) for seed in seeds_of(records, regime)
    ]
    return [one.point.accuracy[name] for one in chosen if one is not None]


def seeds_of(records: Sequence[Record], regime: str) -> list[int]:
    """Seeds on which every arm of a regime was trained at every rate."""
    counts: dict[int, int] = {}
    for record in records:
        if record.setting.regime == regime and record.setting.arm != TEACHER:
            counts[record.setting.seed] = counts.get(record.setting.seed, 0) + 1
    return sorted(seed for seed, count in counts.items() if count == len(ARMS) * len(OPD_RATES))


def difference(
    records: Sequence[Record], regime: str, arm: Arm, other: Arm, budget: Budget, price: float = 1.0
) -> stats.Estimate | None:
    """Mean difference of two arms over seeds with Student's interval; None where one is missing."""
    a, b = (over_seeds(records, regime, each, budget, price) for each in (arm, other))
    if not a or len(a) != len(b):
        return None
    return stats.mean(np.array(a) - np.array(b))


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
        for seed in seeds_of(records, regime)
    ]


def trained_regimes(records: Sequence[Record]) -> list[str]:
    """Regimes with at least one whole seed, in order."""
    return [regime for regime in REGIMES if seeds_of(records, regime)]


def _of(records: Sequence[Record], regime: str, arm: Arm, seed: int) -> list[Record]:
    wanted = (regime, arm, seed)
    return [
        record
        for record in records
        if (record.setting.regime, record.setting.arm, record.setting.seed) == wanted
    ]
