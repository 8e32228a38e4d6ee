"""What a shorter horizon spares, and what it costs (E13)."""

from __future__ import annotations

import numpy as np

from opd_lab.checkpoints import CHAIN
from opd_lab.experiments.entry import Arm, Bench, Claim, Entry, Found, Line
from opd_lab.runs import Result, Task

PAIR = ("chain-deep", "chain-deep-rl")
LONG = 8  # reasoning steps, 27 tokens; the teacher was improved at 4
HELD_OUT = (2, 4, 6, 8)
STEPS, FEWER = 40, 25
CAP, TOLERANCE = 16, 0.02

ARMS: dict[str, tuple[int, tuple[str, ...]]] = {
    "plain": (STEPS, ()),
    "short": (FEWER, ()),  # what fewer steps alone come to
    "cap": (STEPS, (f"horizon.cap={CAP}",)),
    # top-1 agreement, because k = 16 is a quarter of this vocabulary; three bad tokens are the end
    "prune": (
        FEWER,
        (
            "horizon.least=9",
            "horizon.prune.k=1",
            "horizon.prune.threshold=1.0",
            "horizon.prune.drop=0.34",
            "horizon.prune.quantile=0.75",
        ),
    ),
}
TITLES = {
    "plain": f"plain, {STEPS} steps",
    "short": f"plain, {FEWER} steps",
    "cap": f"cut at {CAP} tokens, {STEPS} steps",
    "prune": f"pruned where the overlap dies, {FEWER} steps",
}


def e13() -> Entry:
    """Whether a third of a long response's tokens can be spared."""
    task = Task(CHAIN, LONG, HELD_OUT, test=256)
    room = Task(CHAIN, max(HELD_OUT)).max_new_tokens
    whole = tuple(f"eval.{i}.max_new_tokens={room}" for i in range(len(HELD_OUT)))

    def measure(bench: Bench) -> Found:
        numbers: dict[str, float] = {}
        lines: list[Line] = []
        for name, (length, changes) in ARMS.items():
            done = bench.run(Arm(*PAIR, (f"train.steps={length}", *whole, *changes)), task)
            steps, accuracy = mean_accuracy(done)
            tokens = [0.0, *done.tokens()]
            numbers |= {
                f"start_{name}": accuracy[0],
                f"acc_{name}": accuracy[-1],
                f"tokens_{name}": tokens[-1],
                f"late_{name}": late_share(done),
            }
            numbers[f"saved_{name}"] = 1 - tokens[-1] / numbers["tokens_plain"]
            spent = [tokens[int(step)] / 1000 for step in steps]
            lines.append(Line("mean accuracy by thousand tokens", TITLES[name], spent, accuracy))
        return Found(numbers, lines)

    def spares(name: str) -> Claim:
        return Claim(
            f"{TITLES[name]}: at least 35 % of the tokens are spared and mean accuracy ends at "
            f"most {TOLERANCE} below plain",
            lambda n: n[f"saved_{name}"] >= 0.35 and n[f"acc_{name}"] >= n["acc_plain"] - TOLERANCE,
        )

    shown = {"start_plain": "mean accuracy over 2, 4, 6, 8 steps, before"}
    shown |= {f"acc_{name}": TITLES[name] for name in ARMS}
    shown |= {f"saved_{name}": f"tokens spared, {TITLES[name]}" for name in ARMS if name != "plain"}
    shown["late_plain"] = "share of the gradient from the last half of positions, plain"
    return Entry(
        "E13",
        "What a shorter horizon spares",
        f"chain-deep learns from chain-deep-rl on problems of {LONG} steps (the teacher was "
        "improved at 4). 64 responses a step. Varied: how far they go, how far they count.",
        "Prune-OPD (not this paper): 37.6 to 68 % less time at equal or better accuracy",
        measure,
        (spares("prune"), spares("cap")),
        shown,
        "No setting was found in which long responses make a run collapse (see the log), so this "
        "one asks what the late tokens are worth where they do no harm.",
    )


def mean_accuracy(done: Result) -> tuple[list[float], list[float]]:
    """Steps, and the mean over the held-out horizons at each."""
    curves = [done.curve(f"eval/n{n}/accuracy") for n in HELD_OUT]
    return curves[0][0], np.mean([values for _, values in curves], axis=0).tolist()


def late_share(done: Result) -> float:
    """Share of the gradient that comes from the second half of each response, over the run."""
    names = [f"diag/gradient_share@rel{i}-{i + 10}" for i in range(50, 100, 10)]
    return float(sum(np.mean([row.get(n, 0.0) for row in trained(done)]) for n in names))


def trained(done: Result) -> list[dict[str, float]]:
    """Rows of optimizer steps."""
    return [row for row in done.rows() if "train/loss" in row]
