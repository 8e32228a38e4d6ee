"""Runs that differ by their seed alone, as one arm of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from opd.core import stats
from opd.reports.document import Cell, Number, Sentence, Table, Tile, Tone, Verdict
from opd.reports.eval_sets import EvalSet, why_not_comparable
from opd.reports.formatting import estimate, percent, points, points_range
from opd.reports.plots import Line
from opd.reports.read import RunData
from opd.run.jsonl import flatten

Floats = NDArray[np.float64]

# Keys in which the runs of an arm may differ.
OWN_KEYS = ("train.seed", "output.dir", "output.trackers")


@dataclass(frozen=True)
class Arm:
    """Runs of one configuration.

    Attributes:
        name: of its first run; with the number of seeds where there are several.
        runs: of different seeds.
        names: of the runs.
    """

    name: str
    runs: Sequence[RunData]
    names: Sequence[str]


def arms(runs: Sequence[RunData], names: Sequence[str]) -> list[Arm]:
    """Runs by configuration, in order; runs that all differ by seed alone are an arm each."""
    groups: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        settings = {k: v for k, v in flatten(run.config).items() if not k.startswith(OWN_KEYS)}
        groups.setdefault(repr(sorted(settings.items(), key=lambda item: item[0])), []).append(i)
    if len(groups) == 1:
        return [Arm(name, [run], [name]) for run, name in zip(runs, names, strict=True)]
    compared = []
    for members in groups.values():
        first = names[members[0]]
        name = first if len(members) == 1 else f"{first} and {len(members) - 1} more seed"
        name += "s" if len(members) > 2 else ""
        compared.append(Arm(name, [runs[i] for i in members], [names[i] for i in members]))
    return compared


def mean_line(curves: Sequence[tuple[Floats, Floats]], style: int) -> Line | None:
    """The mean of several curves over the x values that all have, and their range; None without.

    Args:
        curves: x and y of each, the x values the same wherever both have them.
        style: of the line.
    """
    if not curves:
        return None
    shared = reduce(np.intersect1d, [x for x, _ in curves])
    if not len(shared):
        return None
    rows = np.array([y[np.searchsorted(x, shared)] for x, y in curves])
    if len(rows) == 1:
        return Line(shared, rows[0], style)
    return Line(shared, rows.mean(0), style, low=rows.min(0), high=rows.max(0), whole=True)


def grouped_verdict(compared: Sequence[Arm], labels: Sequence[str]) -> tuple[Verdict, Table]:
    """Which arm is better, judged over seeds: the seed is the unit, not the prompt.

    Args:
        compared: arms; the first is the base.
        labels: held-out sets that all runs have; the verdict is about the first.
    """
    label = labels[0]
    finals = [_finals(arm, label) for arm in compared]
    tiles = [
        Tile(arm.name, _over_seeds(values)) for arm, values in zip(compared, finals, strict=True)
    ]
    sentences, better, worse, unclear = [], list[str](), list[str](), list[str]()
    for arm, values in zip(compared[1:], finals[1:], strict=True):
        reason = _why_not_comparable(compared[0], arm, label)
        if reason is not None:
            sentences.append(Sentence(f"{label}: not compared with {arm.name}: {reason}."))
            continue
        difference = stats.difference_of_means(finals[0], values)
        relation, names = ("not measurably different from", unclear)
        if difference.low > 0:
            relation, names = "better than", better
        elif difference.high < 0:
            relation, names = "worse than", worse
        names.append(arm.name)
        evidence = f"{points(difference.value)}, {_range(difference, finals[0], values)}"
        values_ = {k: getattr(difference, k) for k in ("value", "low", "high")}
        sentences.append(
            Sentence(f"{label}: {arm.name} is {relation} {compared[0].name}.", evidence, values_)
        )
    sentences += [s for arm in compared for s in _unlike_steps(arm, label)]
    tone, headline = _headline(compared[0].name, label, better, worse, unclear)
    caption = f"Mean accuracy on {label} over seeds, with its 95% interval."
    rows: list[list[Cell]] = []
    for each in labels:
        for arm in compared:
            before, final = _finals(arm, each, first=True), _finals(arm, each)
            seeds = ", ".join(percent(v).text for v in final)
            rows.append([each, arm.name, _over_seeds(before), _over_seeds(final), seeds])
    columns = ("set", "arm", "before", "after", "each seed")
    return Verdict(headline, tone, tiles, sentences, caption=caption), Table(
        "Mean over seeds", columns, rows, "95% intervals of Student's t over seeds."
    )


def _why_not_comparable(base: Arm, other: Arm, label: str) -> str | None:
    """Why the means of two arms cannot be compared, or None: as for two runs."""
    tasks, others = ([_set(run, label) for run in arm.runs] for arm in (base, other))
    evaluated = [task for task in (*tasks, *others) if task.student]
    if not all(any(task.student for task in arm) for arm in (tasks, others)):
        return "no run of one of them has evaluated it"
    reasons = (why_not_comparable(evaluated[0], task) for task in evaluated[1:])
    return next((reason for reason in reasons if reason is not None), None)


def _unlike_steps(arm: Arm, label: str) -> list[Sentence]:
    """A warning about an arm whose runs are not equally far, or were not all evaluated."""
    tasks = zip(arm.names, (_set(run, label) for run in arm.runs), strict=True)
    steps = {name: task.final.step if task.student else None for name, task in tasks}
    if len(set(steps.values())) < 2:
        return []
    each = [f"{n} never" if s is None else f"{n} after {s:,}" for n, s in steps.items()]
    text = f"{label}: {arm.name} were not evaluated after the same steps: {', '.join(each)}."
    return [Sentence(text)]


def _headline(
    base: str, label: str, better: list[str], worse: list[str], unclear: list[str]
) -> tuple[Tone, str]:
    if not (better or worse or unclear):
        return "unclear", f"No group could be compared on {label}."
    if better:
        return "good", f"{', '.join(better)} is better than {base} on {label}, over seeds."
    if unclear:
        return (
            "unclear",
            f"No measurable difference over seeds between {base} and {', '.join(unclear)} on "
            f"{label}.",
        )
    return "bad", f"{', '.join(worse)} is worse than {base} on {label}, over seeds."


def _set(run: RunData, label: str) -> EvalSet:
    return next(task for task in run.evals if task.label == label)


def _finals(arm: Arm, label: str, *, first: bool = False) -> Floats:
    tasks = [_set(run, label) for run in arm.runs]
    results = [t.student[0] if first else t.final for t in tasks if t.student]
    return np.array([result.accuracy.value for result in results])


def _over_seeds(values: Floats) -> Number:
    if not len(values):
        return Number(None, "\u2013")
    if len(values) == 1:
        return Number(float(values[0]), percent(float(values[0])).text, "one seed")
    if np.ptp(values) == 0:
        return Number(
            float(values[0]), percent(float(values[0])).text, f"{len(values)} seeds, all equal"
        )
    number = estimate(stats.mean(values))
    return Number(number.value, number.text, f"{number.note}, {len(values)} seeds")


def _range(difference: stats.Estimate, *groups: Floats) -> str:
    if np.isfinite(difference.high - difference.low):
        bounds = points_range(difference.low, difference.high)
        return f"{bounds}, Welch's interval over seeds"
    if min(map(len, groups)) < 2:
        return "one seed has no interval"
    return "the seeds of each group have equal accuracies, so there is no interval"
