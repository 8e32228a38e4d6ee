"""What happens inside a good and a failing run, and what foretells it (E4, E9, E10)."""

from __future__ import annotations

import numpy as np

from opd_lab.checkpoints import LEDGER
from opd_lab.experiments.entry import Bench, Claim, Entry, Found, Line, line
from opd_lab.experiments.teachers import MASS, Cast
from opd_lab.runs import Task

MASS_KS = (1, 2, 4, 8, 16, 32)
SIGNALS = {  # key: name, metric
    "loss": ("loss", "train/loss"),
    "gradient": ("gradient norm", "train/grad_norm"),
    "extreme": ("extreme-advantage difference", "diag/extreme_advantage_diff"),
    "entropy": ("entropy gap", "diag/entropy_gap_abs"),
    "advantage": ("overlap-token advantage", "diag/overlap_advantage"),
    "mass": ("overlap mass", MASS),
}
SHORT = {"compatible": "good", "other pattern": "other", "same data": "same"}


def e4(cast: Cast) -> Entry:
    """Mechanism: diagnostics, loss and gradients of a good run and of two failing ones."""
    arms = cast.good_and_failing()

    def measure(bench: Bench) -> Found:
        done = bench.runs(arms, cast.task)
        numbers: dict[str, float] = {}
        for label, result in done.items():
            for key, (_, metric) in SIGNALS.items():
                numbers[f"{key}_{SHORT[label]}_start"] = result.first(metric)
                numbers[f"{key}_{SHORT[label]}_end"] = result.last(metric)
            norms = result.curve(SIGNALS["gradient"][1])[1]
            numbers[f"gradient_{SHORT[label]}_median"] = float(np.median(norms))
        lines = [
            line(result, metric, name, label)
            for name, metric in SIGNALS.values()
            for label, result in done.items()
        ]
        good = arms["compatible"]
        for when, student in (
            ("start", bench.model(cast.base)),
            ("end", done["compatible"].path / "final"),
        ):
            found = bench.overlap(student, good.teacher, cast.task, MASS_KS)
            masses = [found[k][MASS] for k in MASS_KS]
            numbers |= {f"mass{k}_{when}": m for k, m in zip(MASS_KS, masses, strict=True)}
            lines.append(
                Line("mass on the common top k", f"compatible, {when}", list(MASS_KS), masses)
            )
        return Found(numbers, lines)

    claims = (
        Claim(
            "good run: extreme-advantage difference and entropy gap at least halve; with the "
            "other pattern the entropy gap does not",
            lambda n: (
                abs(n["extreme_good_end"]) <= abs(n["extreme_good_start"]) / 2
                and n["entropy_good_end"] <= n["entropy_good_start"] / 2
                and n["entropy_other_end"] > n["entropy_other_start"] / 2
            ),
        ),
        Claim(
            "good run: the loss falls to a quarter or less",
            lambda n: n["loss_good_end"] <= n["loss_good_start"] / 4,
        ),
        Claim(
            "same-data teacher: the loss is small from the start (a third of the good run's or "
            "less), and so is the median gradient norm (half or less)",
            lambda n: (
                n["loss_same_start"] <= n["loss_good_start"] / 3
                and n["gradient_same_median"] <= n["gradient_good_median"] / 2
            ),
        ),
        Claim(
            "the common top 16 holds .97 or more of the student's mass, at the start and the end",
            lambda n: min(n["mass16_start"], n["mass16_end"]) >= 0.97,
        ),
    )
    return Entry(
        "E4",
        "Mechanism",
        f"{cast.base} learns from {cast.large_improved} (good), {cast.other} (failing: other "
        f"pattern) and {cast.large} (failing: same data). The runs of E1 and E2. Varied: the "
        "teacher; for the mass of the common top k also k.",
        "good: loss large, then falling; gradient norm large; extreme difference shrinks; overlap "
        "mass .97-.99. Failing: loss small from the start, gradients small, extreme difference "
        "stays large",
        measure,
        claims,
        {
            "loss_good_start": "loss at the start, good",
            "loss_same_start": "same data",
            "loss_other_start": "other pattern",
            "gradient_good_median": "median gradient norm, good",
            "gradient_same_median": "same data",
            "extreme_good_start": "extreme difference, good, start",
            "extreme_good_end": "end",
            "extreme_other_end": "other pattern, end",
            "mass4_start": "mass on the common top k at the start: k = 4",
            "mass8_start": "k = 8",
            "mass16_start": "k = 16",
        },
        "The paper has one failing pair, ours fail in two ways: with a teacher of the same "
        "data loss and gradients are small, as in the paper, but for single steps with a badly "
        "formed rollout; with one of another pattern both are large.",
    )


def e9(cast: Cast) -> Entry:
    """Continuation gain: what the teacher can still save, by depth of the student's prefix."""
    depths = list(range(cast.task.world.horizon + 1))
    draft = 3 * LEDGER.horizon
    ledger_cuts = [0, 6, draft, draft + 3, draft + 5, draft + 2 * LEDGER.horizon + 1]

    def measure(bench: Bench) -> Found:
        gains = bench.gains(cast.base, cast.large_improved, cast.task, [3 * d for d in depths])
        numbers = {f"gain{d}": g.value for d, g in zip(depths, gains, strict=True)}
        lines = [
            Line(
                "continuation gain, errors final",
                "same pattern",
                [*map(float, depths)],
                [g.value for g in gains],
            )
        ]
        if not cast.quick:
            task = Task(LEDGER)
            repaired = bench.gains("ledger-base", "ledger-clean", task, ledger_cuts)
            names = ("start", "half draft", "draft", "check1", "check2", "check4")
            numbers |= {f"repair_{n}": g.value for n, g in zip(names, repaired, strict=True)}
            lines.append(
                Line(
                    "continuation gain, errors can be repaired (ledger)",
                    "same pattern",
                    [*map(float, ledger_cuts)],
                    [g.value for g in repaired],
                )
            )
        return Found(numbers, lines)

    last = depths[-1]
    falling = Claim(
        "the gain starts at .4 or more and falls with every step (tolerance .03), to .05 or less",
        lambda n: (
            n["gain0"] >= 0.4
            and all(n[f"gain{d + 1}"] <= n[f"gain{d}"] + 0.03 for d in depths[:-1])
            and n[f"gain{last}"] <= 0.05
        ),
    )
    claims: tuple[Claim, ...] = (falling,)
    shown = {"gain0": "gain at depth 0"} | {f"gain{d}": str(d) for d in depths[1:]}
    if not cast.quick:
        claims += (
            Claim(
                "where errors can be repaired, the gain survives the whole draft (.8 of it) and "
                "falls in the check, to .05 or less",
                lambda n: (
                    n["repair_draft"] >= 0.8 * n["repair_start"] and n["repair_check4"] <= 0.05
                ),
            ),
        )
        shown |= {
            "repair_start": "repairable errors: at the start",
            "repair_draft": "after the draft",
            "repair_check2": "half-way through the check",
            "repair_check4": "after it",
        }
    return Entry(
        "E9",
        "Continuation gain by prefix depth",
        f"{cast.large_improved} finishes prefixes of {cast.base}'s rollouts, minus {cast.base} "
        "finishing the same prefixes. Varied: reasoning steps in the prefix"
        + ("." if cast.quick else "; and whether errors can be repaired (the ledger world)."),
        "+.366 (1K), +.271 (4K), +.152 (8K), +.024 (16K tokens)",
        measure,
        claims,
        shown,
    )


def e10(cast: Cast) -> Entry:
    """Does sequence reward tell a helpful teacher from a useless one?"""
    arms = cast.good_and_failing()

    def measure(bench: Bench) -> Found:
        numbers: dict[str, float] = {}
        for label, arm in arms.items():
            short = SHORT[label]
            numbers[f"auroc_{short}"] = bench.auroc(cast.base, arm.teacher, cast.task).value
            found = bench.overlap(cast.base, arm.teacher, cast.task, (16,))[16]
            numbers[f"mass_{short}"] = found[MASS]
            numbers[f"entropy_gap_{short}"] = found["diag/entropy_gap_abs"]
            numbers[f"advantage_{short}"] = found["diag/overlap_advantage"]
            (gain,) = bench.gains(cast.base, arm.teacher, cast.task, [3])
            numbers[f"gain1_{short}"] = gain.value
        measures = ("auroc", "mass", "entropy_gap", "gain1")
        order = ("good", "other", "same")
        lines = [
            Line(
                "what separates teachers (0 good, 1 other pattern, 2 same data)",
                name,
                [0.0, 1.0, 2.0],
                [numbers[f"{name}_{s}"] for s in order],
            )
            for name in measures
        ]
        return Found(numbers, lines)

    claims = (
        Claim(
            "a failing teacher's AUROC is about as good as the good one's: within .1 for one of "
            "the two failing teachers",
            lambda n: n["auroc_good"] - max(n["auroc_other"], n["auroc_same"]) <= 0.1,
        ),
        Claim("the good teacher's AUROC is .6 or more", lambda n: n["auroc_good"] >= 0.6),
        Claim(
            "continuation gain after one step separates: .3 or more for the good teacher, .15 or "
            "less for both others",
            lambda n: n["gain1_good"] >= 0.3 and max(n["gain1_other"], n["gain1_same"]) <= 0.15,
        ),
    )
    return Entry(
        "E10",
        "AUROC of sequence reward",
        f"{cast.base}'s rollouts, scored by the three teachers of E4. Varied: the teacher.",
        "AUROC of mean reward for right against wrong rollouts: .733 (good teacher), .751 "
        "(failing)",
        measure,
        claims,
        {
            "auroc_good": "AUROC, good",
            "auroc_other": "other pattern",
            "auroc_same": "same data",
            "gain1_good": "continuation gain after one step, good",
            "gain1_other": "other pattern",
            "gain1_same": "same data",
            "mass_good": "overlap mass, good",
            "mass_other": "other pattern",
            "mass_same": "same data",
        },
        "Both kinds of failing teacher were tried. With either the mean reward is at chance here, "
        "so that AUROC would tell them apart, other than in the paper; a teacher that is wrong "
        "like the student cannot mark its errors. Continuation gain tells all three apart.",
    )
