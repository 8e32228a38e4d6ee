"""E16 (not in the paper): what distillation does to exploration, and what preserves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from opd_lab.runs import Task

PAIR = ("chain-base", "chain-large-rl")
SAMPLES = 8
PLAIN, HOT, ENTROPY_TERM, FORWARD = "plain", "hot", "entropy", "forward"
ARMS = {
    PLAIN: (),
    HOT: ("rollout.temperature=1.3",),
    ENTROPY_TERM: ("loss.terms.entropy_forward_kl=0.3",),
    FORWARD: ("loss.divergence=forward_kl",),
}
LABELS = {
    PLAIN: "plain",
    HOT: "rollouts at temperature 1.3",
    ENTROPY_TERM: "forward KL where the teacher is uncertain",
    FORWARD: "forward KL everywhere",
}
ENTROPY, PASS_AT_N = "eval/task/response_entropy", f"eval/task/pass@{SAMPLES}"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of a student."""

    entropy: float
    pass_at_n: float
    accuracy: float


@dataclass(frozen=True)
class Numbers:
    """One seed: the student before training, and after it by arm."""

    before: Evaluated
    after: dict[str, Evaluated]


def exploration() -> Experiment[Numbers]:
    """See the module."""
    return Experiment(
        "E16",
        "What preserves exploration",
        f"chain-base learns from chain-large-rl, 40 steps; {SAMPLES} samples per problem. Varied: "
        "what keeps the student's distribution wide.",
        "not measured in the paper; it reports that aligned prompts lower the student's entropy",
        Numbers,
        measure,
        CLAIMS,
        columns(),
        beyond=True,
    )


def measure(workspace: Workspace) -> Measurement[Numbers]:
    """One run per arm."""
    task = Task(CHAIN, test=128)
    evaluations: dict[str, tuple[Evaluated, Evaluated]] = {}
    curves: list[Curve] = []
    for name, changes in ARMS.items():
        result = workspace.run(Arm(*PAIR, (f"eval.0.n={SAMPLES}", *changes)), task)
        steps, entropy = result.curve(ENTROPY)
        _, pass_at_n = result.curve(PASS_AT_N)
        curves.append(Curve("response_entropy", LABELS[name], steps, entropy))
        curves.append(Curve(f"pass@{SAMPLES}", LABELS[name], steps, pass_at_n))
        evaluations[name] = (
            Evaluated(entropy[0], pass_at_n[0], result.initial_accuracy()),
            Evaluated(entropy[-1], pass_at_n[-1], result.accuracy()),
        )
    after = {name: last for name, (_, last) in evaluations.items()}
    return Measurement(Numbers(evaluations[FORWARD][0], after), curves)


def columns() -> tuple[Column[Numbers], ...]:
    """Entropy, pass@n and accuracy, before and by arm."""
    return (
        Column("entropy, before", lambda n: n.before.entropy),
        Column(f"pass@{SAMPLES}, before", lambda n: n.before.pass_at_n),
        Column("accuracy, before", lambda n: n.before.accuracy),
        *by_arm("entropy", lambda e: e.entropy),
        *by_arm(f"pass@{SAMPLES}", lambda e: e.pass_at_n),
        *by_arm("accuracy", lambda e: e.accuracy),
    )


def by_arm(name: str, value: Callable[[Evaluated], float]) -> tuple[Column[Numbers], ...]:
    """One number of the evaluation after training, by arm."""
    labels = {arm: f"{name}, {label}" for arm, label in LABELS.items()}
    return keyed_columns(labels, lambda n: {arm: value(e) for arm, e in n.after.items()})


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "plain distillation leaves less entropy than the student had",
        lambda n: n.after[PLAIN].entropy < n.before.entropy,
    ),
    Claim(
        "forward KL where the teacher is uncertain leaves more of it than plain",
        lambda n: n.after[ENTROPY_TERM].entropy > n.after[PLAIN].entropy,
    ),
    Claim(
        f"and costs no accuracy (tolerance .02), nor pass@{SAMPLES}",
        lambda n: (
            n.after[ENTROPY_TERM].accuracy >= n.after[PLAIN].accuracy - 0.02
            and n.after[ENTROPY_TERM].pass_at_n >= n.after[PLAIN].pass_at_n - 0.02
        ),
    ),
)
