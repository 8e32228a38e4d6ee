"""How long the responses should be, and whether it is worth it at all (E8, E15)."""

from __future__ import annotations

import numpy as np

from opd_lab.checkpoints import CHAIN
from opd_lab.experiments.entry import Arm, Bench, Claim, Entry, Found, Line, line
from opd_lab.experiments.teachers import ACCURACY, MASS
from opd_lab.imitate import imitate
from opd_lab.runs import Result, Task, run

HORIZONS = (2, 4, 6, 8)
LIMITS = (4, 8, 16)  # response tokens; problems of 8 steps need 27
PAIR = ("chain-deep", "chain-deep-rl")


def e8() -> Entry:
    """Longer responses teach more, until they outrun the teacher."""

    def fixed_length(limit: int) -> tuple[str, ...]:
        # Training is cut short, evaluation is not.
        long = Task(CHAIN, 8).max_new_tokens
        return (
            f"rollout.max_new_tokens={limit}",
            *(f"eval.{i}.max_new_tokens={long}" for i in range(len(HORIZONS))),
        )

    def measure(bench: Bench) -> Found:
        numbers: dict[str, float] = {}
        lines = []
        for n in HORIZONS:
            task = Task(CHAIN, n, HORIZONS, test=256)
            long = Task(CHAIN, 8).max_new_tokens
            wide = tuple(f"eval.{i}.max_new_tokens={long}" for i in range(len(HORIZONS)))
            done = bench.run(Arm(*PAIR, wide), task)
            numbers |= everywhere(done, f"h{n}")
            lines.append(line(done, "eval/n8/accuracy", "accuracy at 8 steps", f"horizon {n}"))
            if n == max(HORIZONS):
                numbers |= by_position(done)
                lines += kl_lines(done)
        for limit in LIMITS:
            task = Task(CHAIN, 8, HORIZONS, test=256)
            done = bench.run(Arm(*PAIR, fixed_length(limit)), task)
            numbers |= everywhere(done, f"l{limit}")
            lines.append(
                line(done, "eval/n8/accuracy", "accuracy at 8 steps, responses cut", f"{limit}")
            )
        means = [numbers[f"mean_h{n}"] for n in HORIZONS]
        lines.append(
            Line("mean accuracy by training horizon", "after", [*map(float, HORIZONS)], means)
        )
        means = [numbers[f"mean_l{n}"] for n in LIMITS] + [numbers["mean_h8"]]
        lines.append(
            Line("mean accuracy by response limit", "after", [*map(float, LIMITS), 27.0], means)
        )
        return Found(numbers, lines)

    claims = (
        Claim(
            "best in the middle: a horizon or limit inside the range beats both its ends",
            lambda n: max(n["mean_h4"], n["mean_h6"]) > max(n["mean_h2"], n["mean_h8"]),
        ),
        Claim(
            "very short responses teach little: the shortest limit gains less than half of the "
            "best",
            lambda n: (
                n["mean_l4"] - n["start"]
                < 0.5 * (max(n[f"mean_l{k}"] for k in LIMITS) - n["start"])
            ),
        ),
        Claim(
            "trouble sits late: at the end reverse KL of the last quarter is twice that of the "
            "first",
            lambda n: n["kl_late_end"] >= 2 * n["kl_early_end"],
        ),
    )
    shown = {"start": "mean accuracy over 2, 4, 6, 8 steps, before"}
    shown |= {f"mean_h{n}": f"trained at {n} steps" for n in HORIZONS}
    shown |= {f"mean_l{k}": f"trained at 8 steps, cut at {k} tokens" for k in LIMITS}
    shown |= {
        "kl_early_end": "reverse KL at 8 steps, first quarter, end",
        "kl_late_end": "last quarter",
    }
    return Entry(
        "E8",
        "Response length and horizon",
        "chain-deep (2 to 8 steps) learns from chain-deep-rl (improved at 4 steps alone). Varied: "
        "steps of the training problems; and the longest response on problems of 8 steps.",
        "3K and 7K tokens best; .5K and 1K too little signal; 10K and 15K decline, instability "
        "starts at late positions",
        measure,
        claims,
        shown,
    )


def everywhere(done: Result, key: str) -> dict[str, float]:
    """Accuracy at each held-out horizon and their mean, before and after."""
    after = {f"acc{n}_{key}": done.accuracy(f"n{n}") for n in HORIZONS}
    before = [done.curve(f"eval/n{n}/accuracy")[1][0] for n in HORIZONS]
    return after | {
        f"mean_{key}": float(np.mean([*after.values()])),
        "start": float(np.mean(before)),
    }


def by_position(done: Result) -> dict[str, float]:
    """Reverse KL of the first and the last quarter of positions, at the start and the end."""
    names = _bins(done)
    quarter = max(1, len(names) // 4)
    found = {}
    for where, chosen in (("early", names[:quarter]), ("late", names[-quarter:])):
        found[f"kl_{where}_start"] = float(np.mean([done.first(n) for n in chosen]))
        found[f"kl_{where}_end"] = float(np.mean([done.last(n) for n in chosen]))
    return found


def kl_lines(done: Result) -> list[Line]:
    """Reverse KL against relative position, at the start and the end."""
    names = _bins(done)
    middle = [5.0 + 10 * i for i in range(len(names))]
    panel = "reverse KL by position (%), horizon 8"
    return [
        Line(panel, "start", middle, [done.first(n) for n in names]),
        Line(panel, "end", middle, [done.last(n) for n in names]),
    ]


def _bins(done: Result) -> list[str]:
    names = {n for row in done.rows() for n in row if n.startswith("diag/reverse_kl@rel")}
    return sorted(names, key=lambda n: int(n.partition("@rel")[2].split("-")[0]))


def e15() -> Entry:
    """On-policy distillation, supervised training on the teacher's data, and both."""
    length = {"good": (40, 20), "other": (120, 80)}  # steps in all, of which cold start

    def measure(bench: Bench) -> Found:
        numbers: dict[str, float] = {}
        lines: list[Line] = []
        pairs = {
            "good": ("chain-base", "chain-large-rl"),
            "other": ("chain-mix03", "chain-other-rl"),
        }
        for short, (student, teacher) in pairs.items():
            names = {"good": "same pattern", "other": "other pattern, trace of .03"}
            compare(bench, student, teacher, short, names[short], numbers, lines)
        return Found(numbers, lines)

    def compare(
        bench: Bench,
        student: str,
        teacher: str,
        short: str,
        panel: str,
        numbers: dict[str, float],
        lines: list[Line],
    ) -> None:
        task = Task(CHAIN)
        where = {"seed": bench.seed, "cache": bench.cache}
        folders = bench.model(student), bench.model(teacher)
        total, warm = length[short]
        opd = run(*folders, task, **where, changes=lasting(total))  # type: ignore[arg-type]
        sft = imitate(*folders, task, steps=total, **where)  # type: ignore[arg-type]
        cold = imitate(*folders, task, steps=warm, **where)  # type: ignore[arg-type]
        both = run(cold.path, folders[1], task, **where, changes=lasting(total - warm))  # type: ignore[arg-type]
        curves = {
            "OPD": on_policy(opd, (0.0, 0.0)),
            "SFT": (sft.tokens, sft.seconds, sft.accuracy),
            "SFT, then OPD": on_policy(both, (cold.tokens[-1], cold.seconds[-1])),
        }
        for label, (tokens, seconds, accuracy) in curves.items():
            key = {"OPD": "opd", "SFT": "sft", "SFT, then OPD": "both"}[label]
            numbers[f"{key}_{short}"] = accuracy[-1]
            numbers[f"{key}_{short}_seconds"] = seconds[-1]
            numbers[f"{key}_{short}_tokens"] = tokens[-1]
            lines.append(
                Line(
                    f"{panel}: accuracy by thousand tokens",
                    label,
                    [t / 1000 for t in tokens],
                    list(accuracy),
                )
            )
            lines.append(
                Line(f"{panel}: accuracy by seconds", label, list(seconds), list(accuracy))
            )
        numbers[f"cold_{short}"] = cold.accuracy[-1]
        numbers[f"mass_cold_{short}"] = both.first(MASS)

    claims = (
        Claim(
            "at equal tokens, same pattern: OPD is at least as accurate as SFT (tolerance .02)",
            lambda n: n["opd_good"] >= n["sft_good"] - 0.02,
        ),
        Claim(
            "other pattern: cold start + OPD beats OPD alone by .1 or more",
            lambda n: n["both_other"] - n["opd_other"] >= 0.1,
        ),
        Claim(
            "other pattern: cold start + OPD is at least as accurate as SFT (tolerance .02)",
            lambda n: n["both_other"] >= n["sft_other"] - 0.02,
        ),
    )
    shown = {
        f"{key}_{short}": f"{name}, {pattern}"
        for short, pattern in (("good", "same pattern"), ("other", "other pattern"))
        for key, name in (("opd", "OPD"), ("sft", "SFT"), ("both", "SFT, then OPD"))
    }
    shown |= {"opd_good_seconds": "seconds, OPD", "sft_good_seconds": "seconds, SFT"}
    return Entry(
        "E15",
        "Is it worth it",
        "chain-base learns from chain-large-rl in 40 steps: OPD, SFT on the teacher's rollouts, or "
        "20 of SFT and then OPD; chain-mix03 from chain-other-rl in 120 steps, or 80 of SFT and "
        "then OPD. 64 responses a step. Varied: the method, at equal tokens.",
        "not compared in the paper; its cold start (E6) ends at .125 against .07 (AIME24) without",
        measure,
        claims,
        shown,
        "Seconds are wall-clock time, so those of runs on a busy machine say little; tokens do not "
        "depend on that.",
    )


def lasting(steps: int) -> tuple[str, ...]:
    """The change that gives a run its length; none at the lab's own 40."""
    return () if steps == 40 else (f"train.steps={steps}",)


def on_policy(
    result: Result, before: tuple[float, float]
) -> tuple[list[float], list[float], list[float]]:
    """Tokens, seconds and accuracy at each evaluation of a run, after what was spent before it."""
    steps, accuracy = result.curve(ACCURACY)
    tokens = [0.0, *result.tokens()]
    seconds = [0.0, *result.clock()]
    chosen = [int(step) for step in steps]
    return (
        [before[0] + tokens[s] for s in chosen],
        [before[1] + seconds[s] for s in chosen],
        accuracy,
    )
