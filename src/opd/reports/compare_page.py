"""Two runs or more on one page: paired differences, accuracy against what it cost, curves, keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.core import stats
from opd.errors import UserError
from opd.reports.document import (
    Cell,
    Chart,
    Charts,
    Document,
    Legend,
    Note,
    Number,
    Part,
    Section,
    Sentence,
    Table,
    Tile,
    Tone,
    Verdict,
)
from opd.reports.formatting import estimate, p_value, plain, points, points_range, seconds
from opd.reports.plots import LINES, Line, curves
from opd.reports.ranges import PICTURES, ROLLOUTS, Picture
from opd.reports.read import EvalSet, Evaluated, RunData
from opd.run.jsonl import flatten

Floats = NDArray[np.float64]

_UNSET = "unset"


def comparison(runs: Sequence[RunData]) -> Document:
    """One page for runs; the first is what the others are measured against.

    Raises:
        UserError: fewer than two runs, or more than there are line colours.
    """
    if not 2 <= len(runs) <= LINES:
        raise UserError(f"opd compare takes 2 to {LINES} run folders, got {len(runs)}.")
    names = unique_names(runs)
    sections = [
        Section("verdict", "Which is better?", [_verdict(runs, names)]),
        Section("accuracy", "Accuracy on the same prompts", _accuracy(runs, names)),
        Section("cost", "Accuracy against what it cost", [Charts(_against_cost(runs, names))]),
        Section("picture", "Curves", [Charts(_overlaid(runs, names))]),
        Section("setup", "What differs in the configuration", [_differences(runs, names)]),
    ]
    return Document(title=" against ".join(names), subtitle=f"{len(runs)} runs", sections=sections)


def unique_names(runs: Sequence[RunData]) -> list[str]:
    """Folder names, with a number where two are equal."""
    names = [run.name for run in runs]
    return [f"{n} ({i + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def pairable(a: EvalSet, b: EvalSet) -> str | None:
    """Why two sets cannot be paired, or None: same prompts, same decoding, same count.

    The sampling seed may differ: two runs of different seeds are still about the same prompts.
    """
    if not a.student or not b.student:
        return "one of the runs never evaluated it"
    first, second = a.last, b.last
    if first.key.get("prompts") != second.key.get("prompts"):
        return "the prompts differ"
    differ = [
        k
        for k in sorted(first.key.keys() | second.key.keys())
        if k != "seed" and first.key.get(k) != second.key.get(k)
    ]
    return f"the evaluations differ in {', '.join(differ)}" if differ else None


def _shared(runs: Sequence[RunData]) -> list[str]:
    labels = [[task.label for task in run.evals] for run in runs]
    return [label for label in labels[0] if all(label in others for others in labels)]


def _task(run: RunData, label: str) -> EvalSet:
    return next(task for task in run.evals if task.label == label)


def _verdict(runs: Sequence[RunData], names: Sequence[str]) -> Verdict:
    labels = _shared(runs)
    if not labels:
        return Verdict("The runs share no held-out set.", "unclear", [], [])
    sentences, first = [], dict[str, stats.Estimate]()
    for label in labels:
        base = _task(runs[0], label)
        for run, name in zip(runs[1:], names[1:], strict=True):
            other = _task(run, label)
            why = pairable(base, other)
            if why is not None:
                sentences.append(Sentence(f"{label}: not compared with {name}: {why}."))
                continue
            found = stats.paired(base.last.per_prompt, other.last.per_prompt)
            sentences.append(_said(label, names[0], name, found))
            if label == labels[0]:
                first[name] = found.difference
    tone, headline = _headline(names[0], labels[0], first)
    sentences += _beginnings(runs, names, labels[0])
    base = _task(runs[0], labels[0])
    tiles = [
        _tile(name, _task(run, labels[0]))
        for name, run in zip(names, runs, strict=True)
        if _task(run, labels[0]).student
    ]
    count = base.last.accuracy.n if base.student else 0
    caption = f"Accuracy on {labels[0]}, {count:,} prompts, with its 95% interval."
    return Verdict(headline, tone, tiles, sentences, caption=caption)


def _tile(name: str, task: EvalSet) -> Tile:
    last = task.last
    found = estimate(last.accuracy)
    note = f"{found.note}, after {last.step:,} steps"
    return Tile(name, Number(found.value, found.text, note))


def _headline(base: str, label: str, others: Mapping[str, stats.Estimate]) -> tuple[Tone, str]:
    """Which is better, the difference of each other run from the base given."""
    if not others:
        return "unclear", "No set could be compared prompt by prompt."
    best = max(others, key=lambda name: others[name].value)
    if others[best].low > 0:
        return "good", f"{best} is better than {base} on {label}."
    worse = [name for name, gap in others.items() if gap.high < 0]
    if len(worse) < len(others):
        rest = ", ".join(name for name in others if name not in worse)
        return "unclear", f"No measurable difference between {base} and {rest} on {label}."
    if len(worse) == 1:
        return "bad", f"{worse[0]} is worse than {base} on {label}."
    return "good", f"{base} is better than the other {len(worse)} on {label}."


def _beginnings(runs: Sequence[RunData], names: Sequence[str], label: str) -> list[Sentence]:
    """A word of warning where runs did not begin with the same student."""
    said = []
    base = _task(runs[0], label)
    for run, name in zip(runs[1:], names[1:], strict=True):
        other = _task(run, label)
        if pairable(base, other) is not None:
            continue
        gap = stats.paired(base.student[0].per_prompt, other.student[0].per_prompt).difference
        if gap.low > 0 or gap.high < 0:
            said.append(
                Sentence(
                    f"{name} began with another student than {names[0]}: compare what each gained.",
                    f"before training {points(gap.value)}, {points_range(gap.low, gap.high)}",
                    {"difference": gap.value, "low": gap.low, "high": gap.high},
                )
            )
    return said


def _said(label: str, base: str, name: str, found: stats.Paired) -> Sentence:
    gap = found.difference
    word = (
        f"better than {base}"
        if gap.low > 0
        else f"worse than {base}"
        if gap.high < 0
        else f"not measurably different from {base}"
    )
    return Sentence(
        f"{label}: {name} is {word}.",
        f"{points(gap.value)}, {points_range(gap.low, gap.high)}, {p_value(found.p_value)}, "
        f"paired over {gap.n:,} prompts",
        {"difference": gap.value, "low": gap.low, "high": gap.high, "n": gap.n}
        | {"p": found.p_value},
    )


def _accuracy(runs: Sequence[RunData], names: Sequence[str]) -> list[Part]:
    parts: list[Part] = []
    for label in _shared(runs):
        tasks = [_task(run, label) for run in runs]
        rows: list[list[Cell]] = []
        for name, task in zip(names, tasks, strict=True):
            if task.student:
                first, last = task.student[0], task.last
                teacher: Cell = estimate(task.teacher.accuracy) if task.teacher else ""
                cells = [estimate(first.accuracy), estimate(last.accuracy)]
                steps = Number(last.step, f"{last.step:,}")
                rows.append([name, steps, *cells, _gained(first, last), teacher])
        columns = ("run", "steps", "before", "after", "gained", "teacher")
        parts.append(Table(label, columns, rows))
    return parts or [Note("The runs share no held-out set.")]


def _gained(first: Evaluated, last: Evaluated) -> Cell:
    if first.step == last.step:
        return ""
    gap = stats.paired(first.per_prompt, last.per_prompt).difference
    return Number(gap.value, points(gap.value), points_range(gap.low, gap.high))


def _legend(names: Sequence[str]) -> list[Legend]:
    return [Legend(f"line-{i}", name) for i, name in enumerate(names, 1)]


def _against_cost(runs: Sequence[RunData], names: Sequence[str]) -> list[Chart]:
    charts = []
    costs = (("train/tokens", "completion tokens"), ("time/step_s", "seconds"))
    for label in _shared(runs):
        for cost, words in costs:
            lines, data = [], {}
            for i, (run, name) in enumerate(zip(runs, names, strict=True), 1):
                found = _task(run, label).student
                steps = np.array([e.step for e in found], dtype=np.float64)
                x = spent(run, cost, steps)
                y, low, high = (
                    np.array([getattr(e.accuracy, end) for e in found])
                    for end in ("value", "low", "high")
                )
                lines.append(Line(x, y, i, low=low, high=high, points=True))
                data[name] = {"spent": x.tolist(), "accuracy": y.tolist()}
                data[name] |= {"low": low.tolist(), "high": high.tolist()}
            svg = curves(f"{label}-{cost}", lines, percent=True)
            title = f"{label} against {words}"
            charts.append(Chart(title, svg, data, _legend(names), f"{words} spent so far"))
    return charts


def spent(run: RunData, cost: str, steps: Floats) -> Floats:
    """Sum of a cost over all steps up to each of `steps`."""
    series = run.series(cost)
    sums = np.concatenate([[0.0], np.cumsum(series.values)])
    found: Floats = sums[np.searchsorted(series.steps, steps, side="right")]
    return found


def _overlaid(runs: Sequence[RunData], names: Sequence[str]) -> list[Chart]:
    charts = [_overlay(runs, names, picture) for picture in (*PICTURES, *ROLLOUTS)]
    return [chart for chart in charts if chart is not None]


def _overlay(runs: Sequence[RunData], names: Sequence[str], picture: Picture) -> Chart | None:
    key, words = picture.lines[0]
    lines, legend, data = [], [], dict[str, Any]()
    for i, (run, name) in enumerate(zip(runs, names, strict=True), 1):
        series = run.series(key)
        if len(series):
            lines.append(Line(series.steps, series.values, i))
            legend.append(Legend(f"line-{i}", name))
            data[name] = {"steps": series.steps.tolist(), "values": series.values.tolist()}
    if not lines:
        return None
    svg = curves(picture.title, lines, percent=picture.percent)
    return Chart(picture.title, svg, data, legend, f"{words}. {picture.note}", key)


def _differences(runs: Sequence[RunData], names: Sequence[str]) -> Table:
    flat = [flatten(run.config) for run in runs]
    keys = sorted({key for settings in flat for key in settings})
    rows: list[list[Cell]] = []
    for key in keys:
        values = [settings.get(key, _UNSET) for settings in flat]
        if any(value != values[0] for value in values):
            rows.append([key, *(_cell(value) for value in values)])
    versions = [flatten(run.env.get("versions", {})) for run in runs]
    for key in sorted({k for v in versions for k in v}):
        values = [v.get(key, _UNSET) for v in versions]
        if any(value != values[0] for value in values):
            rows.append([f"version of {key}", *(_cell(value) for value in values)])
    for name, shown in (("train/tokens", _count), ("time/step_s", _duration)):
        words = "completion tokens" if name == "train/tokens" else "machine time"
        rows.append([words, *(shown(float(run.series(name).values.sum())) for run in runs)])
    return Table("Keys", ("", *names), rows)


def _cell(value: Any) -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Number(value, f"{value:g}" if isinstance(value, float) else str(value))
    return str(value)


def _count(value: float) -> Cell:
    return plain(value)


def _duration(value: float) -> Cell:
    return Number(value, seconds(value))
