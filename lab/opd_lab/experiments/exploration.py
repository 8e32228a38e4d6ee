"""What distillation does to exploration, and what holds it (E16: not in the paper)."""

from __future__ import annotations

from opd_lab.checkpoints import CHAIN
from opd_lab.experiments.entry import Arm, Bench, Claim, Entry, Found, Line
from opd_lab.runs import Result, Task

PAIR = ("chain-base", "chain-large-rl")
TRIES = 8
ARMS = {
    "plain": (),
    "hot": ("rollout.temperature=1.3",),
    "entropy": ("loss.terms.entropy_forward_kl=0.3",),
    "forward": ("loss.divergence=forward_kl",),
}
TITLES = {
    "plain": "plain",
    "hot": "rollouts at temperature 1.3",
    "entropy": "forward KL where the teacher is uncertain",
    "forward": "forward KL everywhere",
}
ENTROPY, PASS = "eval/task/response_entropy", f"eval/task/pass@{TRIES}"


def e16() -> Entry:
    """Entropy and pass@k against the start, and three ways to hold them."""
    task = Task(CHAIN, test=128)

    def measure(bench: Bench) -> Found:
        numbers: dict[str, float] = {}
        lines: list[Line] = []
        for name, changes in ARMS.items():
            done = bench.run(Arm(*PAIR, (f"eval.0.n={TRIES}", *changes)), task)
            for key, metric in (("entropy", ENTROPY), ("pass", PASS)):
                steps, values = done.curve(metric)
                numbers[f"{key}_start"], numbers[f"{key}_{name}"] = values[0], values[-1]
                lines.append(Line(metric.split("/")[-1], TITLES[name], steps, values))
            numbers |= {f"acc_{name}": done.accuracy(), "acc_start": _start(done)}
        return Found(numbers, lines)

    claims = (
        Claim(
            "plain distillation leaves less entropy than the student had",
            lambda n: n["entropy_plain"] < n["entropy_start"],
        ),
        Claim(
            "forward KL where the teacher is uncertain leaves more of it than plain",
            lambda n: n["entropy_entropy"] > n["entropy_plain"],
        ),
        Claim(
            f"and costs no accuracy (tolerance .02), nor pass@{TRIES}",
            lambda n: (
                n["acc_entropy"] >= n["acc_plain"] - 0.02
                and n["pass_entropy"] >= n["pass_plain"] - 0.02
            ),
        ),
    )
    shown = {"entropy_start": "entropy, before", "pass_start": f"pass@{TRIES}, before"}
    shown |= {"acc_start": "accuracy, before"}
    for key, word in (("entropy", "entropy"), ("pass", f"pass@{TRIES}"), ("acc", "accuracy")):
        shown |= {f"{key}_{name}": f"{word}, {TITLES[name]}" for name in ARMS}
    return Entry(
        "E16",
        "What holds exploration",
        f"chain-base learns from chain-large-rl, 40 steps; {TRIES} tries a problem. Varied: "
        "what keeps the student's distribution wide.",
        "not measured in the paper; it reports that aligned prompts lower the student's entropy",
        measure,
        claims,
        shown,
    )


def _start(done: Result) -> float:
    return done.curve("eval/task/accuracy")[1][0]
