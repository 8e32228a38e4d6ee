"""Which teacher helps: thinking pattern, new capability, reverse distillation (E1, E2, E3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd.core import stats
from opd_lab.checkpoints import CHAIN, QUICK
from opd_lab.experiments.entry import Arm, Bench, Claim, Entry, Found, Line, line
from opd_lab.runs import Result, Task

ACCURACY = "eval/task/accuracy"
MASS, TOP1 = "diag/overlap_mass_student", "diag/top1_agreement"
KS = (1, 4, 16)


@dataclass(frozen=True)
class Cast:
    """Who plays: the same experiments at full size and at that of the everyday tests."""

    task: Task
    base: str
    large: str
    improved: str
    large_improved: str
    other: str
    changes: tuple[str, ...] = ()
    quick: bool = False
    margin: float = 0.08  # of equivalence; small models fall at paces that differ more
    near: float = 0.08  # of the base, where the fall must end; short runs do not fall all the way

    def arm(self, student: str, teacher: str, *changes: str) -> Arm:
        """A run with the cast's own settings."""
        return Arm(student, teacher, (*self.changes, *changes))

    def good_and_failing(self) -> dict[str, Arm]:
        """The three runs that most findings are about."""
        return {
            "compatible": self.arm(self.base, self.large_improved),
            "other pattern": self.arm(self.base, self.other),
            "same data": self.arm(self.base, self.large),
        }


FULL = Cast(
    Task(CHAIN), "chain-base", "chain-large", "chain-rl", "chain-large-rl", "chain-other-rl"
)
QUICK_CAST = Cast(
    Task(QUICK, test=384),
    "quick-base",
    "quick-large",
    "quick-clean",
    "quick-large-clean",
    "quick-other-clean",
    ("train.steps=30", "eval.0.every=10", "optim.lr=1.5e-3"),
    quick=True,
    margin=0.12,
    near=0.15,
)


def e1(cast: Cast) -> Entry:
    """Thinking pattern: two teachers of about equal accuracy, one of another pattern."""
    arms = cast.good_and_failing()
    traces = {"other pattern, trace of .03": "chain-mix03", "trace of .10": "chain-mix10"}

    def measure(bench: Bench) -> Found:
        done = {
            label: bench.run(arms[label], cast.task) for label in ("compatible", "other pattern")
        }
        numbers = {"gap": done["compatible"].accuracy() - done["other pattern"].accuracy()}
        for label, short in (("compatible", "good"), ("other pattern", "other")):
            numbers[f"acc_{short}"] = done[label].accuracy()
            numbers[f"teacher_{short}"] = bench.accuracy(arms[label].teacher)
            ends = {"start": bench.model(cast.base), "end": done[label].path / "final"}
            for when, folder in ends.items():
                found = bench.overlap(folder, arms[label].teacher, cast.task, KS)
                numbers |= {
                    f"overlap{k}_{short}_{when}": v["diag/overlap_ratio"] for k, v in found.items()
                }
                numbers |= {f"mass{k}_{short}_{when}": v[MASS] for k, v in found.items()}
        if not cast.quick:
            for label, student in traces.items():
                done[label] = bench.run(cast.arm(student, cast.other), cast.task)
                numbers[f"acc_{student}"] = done[label].accuracy()
        lines = [
            line(result, metric, panel, label)
            for label, result in done.items()
            for metric, panel in (
                (ACCURACY, "accuracy"),
                (MASS, "overlap mass, k = 16"),
                (TOP1, "overlap ratio, k = 1"),
                ("diag/overlap_ratio", "overlap ratio, k = 16"),
            )
        ]
        return Found(numbers, lines)

    claims = (
        Claim(
            "accuracy with the compatible teacher is at least .4 higher", lambda n: n["gap"] >= 0.4
        ),
        Claim(
            "the teachers' own accuracies differ by at most .15",
            lambda n: abs(n["teacher_good"] - n["teacher_other"]) <= 0.15,
        ),
        Claim(
            "overlap at k = 1 starts at least .5 higher with the compatible teacher",
            lambda n: n["overlap1_good_start"] - n["overlap1_other_start"] >= 0.5,
        ),
        Claim(
            "overlap mass at k = 16 ends at .97 or more, and higher than with the other pattern",
            lambda n: n["mass16_good_end"] >= max(0.97, n["mass16_other_end"]),
        ),
    )
    shown = {
        "acc_good": "accuracy, compatible",
        "acc_other": "accuracy, other pattern",
        "overlap1_good_start": "k = 1 overlap at the start, compatible",
        "overlap1_other_start": "other pattern",
        "overlap16_good_start": "k = 16 overlap at the start, compatible",
        "overlap16_other_start": "other pattern",
    }
    if not cast.quick:
        shown |= {
            "acc_chain-mix03": "accuracy, other pattern, .03 of it in the corpus",
            "acc_chain-mix10": "accuracy, other pattern, .10 of it",
        }
    return Entry(
        "E1",
        "Thinking pattern",
        f"{cast.base} learns from {cast.large_improved} (same pattern) and from {cast.other} "
        "(other pattern), about equally accurate teachers. Varied: the teacher"
        + ("." if cast.quick else "; and the share of the other pattern in the student's corpus."),
        "mean accuracy about .20 (compatible) and .15 after 200 steps, from teachers of equal "
        "benchmark score; initial overlap higher with the compatible one",
        measure,
        claims,
        shown,
    )


def e2(cast: Cast) -> Entry:
    """New capability: a larger teacher with the same data against an improved one."""
    arms = cast.good_and_failing()
    half = cast.arm(cast.base, "chain-half-rl")

    def measure(bench: Bench) -> Found:
        before = bench.accuracy(cast.base)
        done = {
            "improved teacher": bench.run(arms["compatible"], cast.task),
            "same-data larger teacher": bench.run(arms["same data"], cast.task),
        }
        teacher = bench.accuracy(cast.large_improved)
        numbers = {
            "before": before,
            "gain_same": done["same-data larger teacher"].accuracy()
            - done["same-data larger teacher"].curve(ACCURACY)[1][0],
            "recovery": (done["improved teacher"].accuracy() - before) / (teacher - before),
            "overlap_same": done["same-data larger teacher"].first("diag/overlap_ratio"),
            "overlap_improved": done["improved teacher"].first("diag/overlap_ratio"),
        }
        if not cast.quick:
            done["half-improved teacher"] = bench.run(half, cast.task)
            numbers["acc_half"] = done["half-improved teacher"].accuracy()
            numbers["teacher_half"] = bench.accuracy("chain-half-rl")
        lines = [
            line(result, metric, panel, label)
            for label, result in done.items()
            for metric, panel in (
                (ACCURACY, "accuracy"),
                ("diag/reverse_kl", "reverse KL"),
                ("diag/overlap_ratio", "overlap ratio, k = 16"),
            )
        ]
        return Found(numbers, lines)

    claims = (
        Claim(
            "the improved teacher's lead is recovered by .8 or more", lambda n: n["recovery"] >= 0.8
        ),
        Claim(
            "the same-data teacher changes accuracy by at most .06",
            lambda n: abs(n["gain_same"]) <= 0.06,
        ),
        Claim(
            "initial overlap is no lower with the same-data teacher",
            lambda n: n["overlap_same"] >= n["overlap_improved"] - 0.01,
        ),
    )
    shown = {
        "recovery": "gap recovery, improved teacher",
        "gain_same": "accuracy gain, same-data larger teacher",
        "overlap_same": "initial overlap, same data",
        "overlap_improved": "improved",
    }
    if not cast.quick:
        shown |= {"teacher_half": "accuracy of a half-improved teacher", "acc_half": "its student"}
    return Entry(
        "E2",
        "New capability",
        f"{cast.base} learns from {cast.large} (same data, larger) and from {cast.large_improved} "
        "(improved). Varied: the teacher's post-training.",
        "gap recovery 5.3 % against 16.9 % (initial overlap 74.2 % and 71.5 %); 15.6 % against "
        "58.6 % (75.7 % and 70.3 %)",
        measure,
        claims,
        shown,
        "The larger same-data model is no better than the base by construction, so its ceiling is "
        "set; what is seen is that its small loss is no good news.",
    )


def e3(cast: Cast) -> Entry:
    """Reverse distillation: an improved student learns from its own past."""
    # Unlearning is slow, its loss being small: twice the usual steps.
    longer = ("train.steps=60" if cast.quick else "train.steps=80", "eval.0.every=20")
    arms = {
        "own base": cast.arm(cast.improved, cast.base, *longer),
        "larger same-data": cast.arm(cast.improved, cast.large, *longer),
    }

    def measure(bench: Bench) -> Found:
        done = bench.runs(arms, cast.task)
        whole, end = curve_difference(done["own base"], done["larger same-data"])
        numbers = {
            "before": bench.accuracy(cast.improved),
            "base": bench.accuracy(cast.base),
            "large": bench.accuracy(cast.large),
            "end_base": done["own base"].accuracy(),
            "end_large": done["larger same-data"].accuracy(),
            "difference": whole.value,
            "difference_low": whole.low,
            "difference_high": whole.high,
            "end_difference": end.value,
        }
        lines = [line(r, ACCURACY, "accuracy", label) for label, r in done.items()]
        lines += [line(r, "diag/reverse_kl", "reverse KL", label) for label, r in done.items()]
        ends = done["own base"].curve(ACCURACY)[0]
        lines.append(Line("accuracy", "level of the base", ends, [numbers["base"]] * len(ends)))
        return Found(numbers, lines)

    claims = (
        Claim(
            f"both students fall to within {cast.near} of the base",
            lambda n: (
                max(abs(n["end_base"] - n["base"]), abs(n["end_large"] - n["base"])) <= cast.near
            ),
        ),
        Claim(
            "the two curves are equivalent: the 95 % interval of their mean difference after the "
            f"start lies within +-{cast.margin}",
            lambda n: -cast.margin <= n["difference_low"] and n["difference_high"] <= cast.margin,
        ),
    )
    return Entry(
        "E3",
        "Reverse distillation",
        f"{cast.improved} learns from {cast.base} (its own past) and from {cast.large} (larger, "
        "same data). Varied: the teacher. Equivalence test (two one-sided tests at 2.5 %): both "
        "students answer the same held-out problems with the same random numbers at every "
        "evaluation after the start; per problem the mean difference over evaluations, its 95 % "
        "interval over problems, margin "
        f"{cast.margin}.",
        "AIME24 .54 falls to about .30 with either teacher (their own .28 and .55); the curves "
        "coincide",
        measure,
        claims,
        {
            "before": "accuracy before",
            "end_base": "after own base",
            "end_large": "after larger same-data",
            "base": "the base's own",
            "difference": "mean difference of the curves",
        },
    )


def curve_difference(a: Result, b: Result) -> tuple[stats.Estimate, stats.Estimate]:
    """Mean difference a - b per problem over all evaluations after the start, and at the end."""
    steps = [int(step) for step in a.curve(ACCURACY)[0] if step > 0]
    each = np.stack([a.correct(step) - b.correct(step) for step in steps])
    return stats.mean(each.mean(0)), stats.mean(each[-1])
