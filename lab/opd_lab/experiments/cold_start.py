"""E6: an incompatible teacher, with a cold start and without."""

from __future__ import annotations

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
    metric_curve,
)
from opd_lab.experiments.setups import ACCURACY, MASS
from opd_lab.experiments.workspace import Arm, Workspace
from opd_lab.runs import RunResult, Task

PAIR = ("chain-base", "chain-other-rl")
STEPS = 80  # on-policy, after the cold start
MAX_ROUNDS = 16
EVERY = 10
COLD_START = (
    "coldstart.completions_per_round=512",
    f"coldstart.max_rounds={MAX_ROUNDS}",
    "coldstart.lr=4e-3",  # at 1e-3 it took 13 to 15 rounds instead of 7
    "coldstart.temperature=1.0",
    "coldstart.top_p=1.0",
)
OVERLAP_PANEL = "overlap by round of the cold start"


@dataclass(frozen=True)
class ColdStart:
    """The record of a cold start: its length, its cost, and overlap with the teacher by round."""

    rounds: int
    tokens: int  # completion tokens trained on
    sampled_tokens: int  # of completions and overlap probes
    accuracy: float
    mass: list[float]
    top1: list[float]


@dataclass(frozen=True)
class Numbers:
    """Accuracies of one seed by method, and the cold start itself."""

    teacher: float
    before: float
    with_cold_start: float
    opd_equal_tokens: float
    opd_equal_time: float
    cold_start: ColdStart


def cold_start() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E6",
        "Cold start",
        f"{PAIR[0]} learns from {PAIR[1]} (other pattern): a cold start of the product, which ends "
        f"by itself (at most {MAX_ROUNDS} rounds of 512 completions), then {STEPS} steps of OPD; "
        "OPD alone for as many tokens (filtered completions and overlap probes included) and for "
        "as many seconds. Varied: the method.",
        "with a cold start .125 on AIME24 and rising, .07 and flat without",
        Numbers,
        measure,
        CLAIMS,
        COLUMNS,
        "Equal time is that of the machine the run was made on. Supervised training on the "
        "teacher's answers, at its own best rate, has a page of its own (opd lab tuned).",
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """A run with a cold start, and a long one without."""
    task = Task(CHAIN, train=20_000)
    changes = (f"train.steps={STEPS}", f"eval.0.every={EVERY}")
    with_cold = workspace.run(Arm(*PAIR, (*changes, *COLD_START)), task)
    record = parse_record(with_cold.record("coldstart.json"))
    cold_seconds, step_seconds = seconds_of(with_cold)
    tokens_per_step = with_cold.cumulative_tokens()[-1] / STEPS
    by_tokens = STEPS + round_up(record.sampled_tokens / tokens_per_step)
    by_time = STEPS + round_up(cold_seconds / step_seconds)
    changes = (f"train.steps={max(by_tokens, by_time)}", f"eval.0.every={EVERY}")
    alone = workspace.run(Arm(*PAIR, changes), task)
    accuracy_at = dict(zip(*alone.curve(ACCURACY), strict=True))
    numbers = Numbers(
        teacher=workspace.accuracy(PAIR[1]),
        before=with_cold.initial_accuracy(),
        with_cold_start=with_cold.accuracy(),
        opd_equal_tokens=accuracy_at[by_tokens],
        opd_equal_time=accuracy_at[by_time],
        cold_start=record,
    )
    return Measurement(numbers, curves_of(with_cold, alone, record))


def parse_record(record: dict[str, Any]) -> ColdStart:
    """The part of coldstart.json that is used here."""
    return ColdStart(
        rounds=record["rounds"],
        tokens=record["tokens"],
        sampled_tokens=record["written_tokens"] + record["probe_tokens"],
        accuracy=record["sets"]["task"]["value"],
        mass=[probe["mass"] for probe in record["looks"]],
        top1=[probe["top1"] for probe in record["looks"]],
    )


def seconds_of(result: RunResult) -> tuple[float, float]:
    """Seconds of the cold start, and the median of an on-policy step, evaluations left out."""
    cold_seconds, step_seconds = 0.0, []
    for row in result.lines("timings.jsonl"):
        seconds = row["time/step_s"] - row.get("time/evaluate_s", 0.0)
        if row["step"] == 0:
            cold_seconds += seconds
        else:
            step_seconds.append(seconds)
    return cold_seconds, float(np.median(step_seconds))


def round_up(steps: float) -> int:
    """Steps until the next evaluation."""
    return EVERY * -(-int(np.ceil(steps)) // EVERY)


def curves_of(with_cold: RunResult, alone: RunResult, record: ColdStart) -> list[Curve]:
    """Accuracy by tokens, overlap by step and by round."""
    panel = "accuracy by thousand tokens"
    curves = []
    runs = (("cold start + OPD", with_cold, record.sampled_tokens), ("OPD", alone, 0))
    for label, result, tokens_before in runs:
        steps, accuracy = result.curve(ACCURACY)
        tokens = [0.0, *result.cumulative_tokens()]
        thousands = [(tokens_before + tokens[int(step)]) / 1000 for step in steps]
        if result is with_cold:  # the curve begins where the cold start ends
            accuracy = [record.accuracy, *accuracy[1:]]
        curves.append(Curve(panel, label, thousands, accuracy))
        curves.append(metric_curve(result, MASS, "overlap mass by on-policy step", label))
    for label, values in (("mass", record.mass), ("top-1", record.top1)):
        curves.append(Curve(OVERLAP_PANEL, label, [*map(float, range(len(values)))], values))
    return curves


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "cold start + OPD beats OPD alone at equal tokens by .04 or more",
        lambda n: n.with_cold_start - n.opd_equal_tokens >= 0.04,
    ),
    Claim("and at equal time", lambda n: n.with_cold_start - n.opd_equal_time >= 0.04),
    Claim(
        "the cold start ends by itself, before its completions are used up",
        lambda n: n.cold_start.rounds < MAX_ROUNDS,
    ),
)
COLUMNS: tuple[Column[Numbers], ...] = (
    Column("accuracy before", lambda n: n.before),
    Column("after the cold start", lambda n: n.cold_start.accuracy),
    Column("cold start + OPD", lambda n: n.with_cold_start),
    Column("OPD alone, equal tokens", lambda n: n.opd_equal_tokens),
    Column("OPD alone, equal time", lambda n: n.opd_equal_time),
    Column("teacher", lambda n: n.teacher),
    Column("rounds of the cold start", lambda n: n.cold_start.rounds),
    Column("off-policy tokens trained on", lambda n: n.cold_start.tokens),
    Column("overlap mass before", lambda n: n.cold_start.mass[0]),
    Column("after the cold start", lambda n: n.cold_start.mass[-1]),
    Column("top-1 agreement before", lambda n: n.cold_start.top1[0]),
    Column("after the cold start", lambda n: n.cold_start.top1[-1]),
)
