"""A failing pair and its rescue: cold start, then on-policy (E6)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from opd_lab.checkpoints import CHAIN
from opd_lab.experiments.entry import Arm, Bench, Claim, Entry, Found, Line, line
from opd_lab.experiments.teachers import ACCURACY, MASS
from opd_lab.imitate import imitate
from opd_lab.runs import Result, Task

PAIR = ("chain-base", "chain-other-rl")
STEPS = 80  # on-policy, after the cold start
COLD = (
    "coldstart.completions_per_round=512",
    "coldstart.max_rounds=16",
    "coldstart.batch=32",
    "coldstart.lr=1e-3",
    "coldstart.temperature=1.0",
    "coldstart.top_p=1.0",
    "coldstart.probe_prompts=128",
)
EVERY = 10


def e6() -> Entry:
    """Cold start and then OPD; OPD alone for as many tokens, and for as long; SFT alone."""
    task = Task(CHAIN, train=20_000)
    size = (f"train.steps={STEPS}", f"eval.0.every={EVERY}")

    def measure(bench: Bench) -> Found:
        both = bench.run(Arm(*PAIR, (*size, *COLD)), task)
        cold = record(both)
        warm_seconds, step_seconds = spent(both)
        spent_tokens = cold["written_tokens"] + cold["probe_tokens"]
        by_tokens = STEPS + round_up(spent_tokens / (both.tokens()[-1] / STEPS))
        by_time = STEPS + round_up(warm_seconds / step_seconds)
        longest = max(by_tokens, by_time)
        alone = bench.run(Arm(*PAIR, (f"train.steps={longest}", f"eval.0.every={EVERY}")), task)
        steps, curve = alone.curve(ACCURACY)
        where = {"seed": bench.seed, "cache": bench.cache}
        folders = bench.model(PAIR[0]), bench.model(PAIR[1])
        sft = imitate(*folders, task, steps=by_tokens, **where)  # type: ignore[arg-type]
        numbers = {
            "teacher": bench.accuracy(PAIR[1]),
            "before": both.curve(ACCURACY)[1][0],
            "cold": cold["sets"]["task"]["value"],
            "both": both.accuracy(),
            "alone_tokens": curve[steps.index(by_tokens)],
            "alone_time": curve[steps.index(by_time)],
            "sft": sft.accuracy[-1],
            "rounds": float(cold["rounds"]),
            "cold_tokens": float(cold["tokens"]),
            "cold_steps": float(by_tokens - STEPS),
            "time_steps": float(by_time - STEPS),
            "mass_start": cold["looks"][0]["mass"],
            "top1_start": cold["looks"][0]["top1"],
            "mass_cold": cold["looks"][-1]["mass"],
            "top1_cold": cold["looks"][-1]["top1"],
            "mass_alone": alone.last(MASS),
        }
        return Found(numbers, lines_of(both, alone, sft.tokens, sft.accuracy, cold))

    claims = (
        Claim(
            "cold start + OPD beats OPD alone at equal tokens by .04 or more",
            lambda n: n["both"] - n["alone_tokens"] >= 0.04,
        ),
        Claim(
            "and at equal time",
            lambda n: n["both"] - n["alone_time"] >= 0.04,
        ),
        Claim(
            "and SFT alone at equal tokens",
            lambda n: n["both"] - n["sft"] >= 0.04,
        ),
        Claim(
            "the cold start ends by itself, before its material does",
            lambda n: n["rounds"] < 16,
        ),
    )
    shown = {
        "before": "accuracy before",
        "cold": "after the cold start",
        "both": "cold start + OPD",
        "alone_tokens": "OPD alone, equal tokens",
        "alone_time": "OPD alone, equal time",
        "sft": "SFT alone, equal tokens",
        "teacher": "teacher",
        "rounds": "rounds of the cold start",
        "cold_tokens": "off-policy tokens learned from",
        "mass_start": "overlap mass before",
        "mass_cold": "after the cold start",
        "top1_start": "top-1 agreement before",
        "top1_cold": "after the cold start",
    }
    return Entry(
        "E6",
        "Cold start",
        f"{PAIR[0]} learns from {PAIR[1]} (other pattern): a cold start of the product, which ends "
        f"by itself (at most 16 rounds of 512 completions), then {STEPS} steps of OPD; OPD alone "
        "for as many tokens (those that were left out or only looked at included) and for as many "
        "seconds; SFT alone on as many teacher tokens. Varied: the method.",
        "with a cold start .125 on AIME24 and rising, .07 and flat without",
        measure,
        claims,
        shown,
        "Equal time is that of the machine the run was made on.",
    )


def record(result: Result) -> dict[str, Any]:
    """What the cold start of a run came to."""
    found: dict[str, Any] = json.loads((result.path / "coldstart.json").read_text("utf-8"))
    return found


def spent(result: Result) -> tuple[float, float]:
    """Seconds of the cold start, and the median of an on-policy step, evaluations left out."""
    cold, steps = 0.0, []
    for row in result.lines("timings.jsonl"):
        seconds = row["time/step_s"] - row.get("time/evaluate_s", 0.0)
        if row["step"] == 0:
            cold += seconds
        else:
            steps.append(seconds)
    return cold, float(np.median(steps))


def round_up(steps: float) -> int:
    """Steps until the next evaluation."""
    return EVERY * -(-int(np.ceil(steps)) // EVERY)


def lines_of(
    both: Result, alone: Result, tokens: list[float], accuracy: list[float], cold: dict[str, Any]
) -> list[Line]:
    """Accuracy by tokens; overlap by step."""
    panel, before = "accuracy by thousand tokens", cold["written_tokens"] + cold["probe_tokens"]
    found = [Line(panel, "SFT", [t / 1000 for t in tokens], accuracy)]
    for label, result, start in (("cold start + OPD", both, before), ("OPD", alone, 0)):
        steps, values = result.curve(ACCURACY)
        made = [0.0, *result.tokens()]
        at = [(start + made[int(step)]) / 1000 for step in steps]
        if start:  # the curve begins where the cold start ends
            values = [cold["sets"]["task"]["value"], *values[1:]]
        found.append(Line(panel, label, at, values))
        found.append(line(result, MASS, "overlap mass by on-policy step", label))
    looks = [look["mass"] for look in cold["looks"]]
    found.append(
        Line("overlap by round of the cold start", "mass", [*map(float, range(len(looks)))], looks)
    )
    top1 = [look["top1"] for look in cold["looks"]]
    found.append(
        Line("overlap by round of the cold start", "top-1", [*map(float, range(len(top1)))], top1)
    )
    return found
