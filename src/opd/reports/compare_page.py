"""The comparison of several runs: paired differences, accuracy against cost, curves, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opd.core import stats
from opd.errors import UserError
from opd.reports.answers import answers_of_runs
from opd.reports.chart_specs import DIAGNOSTIC_CHARTS, ROLLOUT_CHARTS, ChartSpec
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
from opd.reports.eval_sets import EvalResult, EvalSet, why_not_comparable
from opd.reports.formatting import (
    estimate,
    p_value,
    plain,
    points,
    points_range,
    seconds,
    setting,
)
from opd.reports.plots import LINEAR, MAX_LINES, PERCENT, Line, curves
from opd.reports.read import RunData
from opd.reports.seed_groups import Arm, arms, grouped_verdict, mean_line
from opd.run.jsonl import flatten

Floats = NDArray[np.float64]

_UNSET = "unset"


def compare_document(runs: Sequence[RunData]) -> Document:
    """The report of several runs; the first is the base that the others are compared with.

    Runs that differ by their seed alone are one arm, if there is another configuration.

    Raises:
        UserError: fewer than two runs, or more arms than there are line colours.
    """
    names = unique_names(runs)
    compared = arms(runs, names)
    if not 2 <= len(compared) <= MAX_LINES:
        raise UserError(
            f"opd compare takes 2 to {MAX_LINES} run folders, or groups of runs that differ by "
            f"train.seed alone; got {len(compared)}."
        )
    labels = _common_sets(runs)
    firsts = [arm.runs[0] for arm in compared]
    grouped = len(compared) < len(runs)
    first_names = [arm.names[0] for arm in compared]
    verdict: list[Part] = [_verdict(runs, names)]
    if grouped and labels:
        verdict = list(grouped_verdict(compared, labels))
    sections = [
        Section("verdict", "Which is better?", verdict),
        Section("accuracy", "Accuracy on the same prompts", _accuracy_tables(runs, names)),
        *_disagreements(firsts, first_names),
        Section("cost", "Accuracy against cost", [Charts(_cost_charts(compared, labels))]),
        Section("picture", "Curves", [Charts(_curve_charts(compared))]),
        Section("setup", "What differs in the configuration", [_differences(firsts, first_names)]),
    ]
    subtitle = f"{len(runs)} runs" + (f" in {len(compared)} groups of seeds" if grouped else "")
    title = " against ".join(arm.name for arm in compared)
    return Document(title=title, subtitle=subtitle, sections=sections)


def _disagreements(runs: Sequence[RunData], names: Sequence[str]) -> list[Section]:
    """Every answer of the runs side by side, on the sets where prompts and decoding are equal."""
    lists = []
    for label in _common_sets(runs):
        tasks = [_eval_set(run, label) for run in runs]
        if all(why_not_comparable(tasks[0], task) is None for task in tasks):
            lists.append(answers_of_runs(label, names, tasks))
    return [Section("answers", "Where the answers disagree", lists)] if lists else []


def unique_names(runs: Sequence[RunData]) -> list[str]:
    """Folder names, with a number where two are equal."""
    names = [run.name for run in runs]
    return [f"{n} ({i + 1})" if names.count(n) > 1 else n for i, n in enumerate(names)]


def _common_sets(runs: Sequence[RunData]) -> list[str]:
    labels = [[task.label for task in run.evals] for run in runs]
    return [label for label in labels[0] if all(label in others for others in labels)]


def _eval_set(run: RunData, label: str) -> EvalSet:
    return next(task for task in run.evals if task.label == label)


def _verdict(runs: Sequence[RunData], names: Sequence[str]) -> Verdict:
    labels = _common_sets(runs)
    if not labels:
        return Verdict("The runs have no held-out set in common.", "unclear", [], [])
    sentences, differences = [], dict[str, stats.Estimate]()  # those on the first set
    for label in labels:
        base = _eval_set(runs[0], label)
        for run, name in zip(runs[1:], names[1:], strict=True):
            other = _eval_set(run, label)
            reason = why_not_comparable(base, other)
            if reason is not None:
                sentences.append(Sentence(f"{label}: not compared with {name}: {reason}."))
                continue
            paired = stats.paired(base.final.per_prompt, other.final.per_prompt)
            sentences.append(_comparison(label, names[0], name, paired))
            if label == labels[0]:
                differences[name] = paired.difference
    tone, headline = _headline(names[0], labels[0], differences)
    sentences += _different_starts(runs, names, labels[0])
    base = _eval_set(runs[0], labels[0])
    tiles = [
        _tile(name, _eval_set(run, labels[0]))
        for name, run in zip(names, runs, strict=True)
        if _eval_set(run, labels[0]).student
    ]
    count = base.final.accuracy.n if base.student else 0
    caption = f"Accuracy on {labels[0]}, {count:,} prompts, with its 95% interval."
    return Verdict(headline, tone, tiles, sentences, caption=caption)


def _tile(name: str, task: EvalSet) -> Tile:
    accuracy = estimate(task.final.accuracy)
    note = f"{accuracy.note}, after {task.final.step:,} steps"
    return Tile(name, Number(accuracy.value, accuracy.text, note))


def _headline(base: str, label: str, others: Mapping[str, stats.Estimate]) -> tuple[Tone, str]:
    """Which run is better.

    Args:
        base: name of the first run.
        label: of the held-out set.
        others: difference of each other run from the base.
    """
    if not others:
        return "unclear", "No set could be compared prompt by prompt."
    best = max(others, key=lambda name: others[name].value)
    if others[best].low > 0:
        return "good", f"{best} is better than {base} on {label}."
    worse = [name for name, difference in others.items() if difference.high < 0]
    if len(worse) < len(others):
        rest = ", ".join(name for name in others if name not in worse)
        return "unclear", f"No measurable difference between {base} and {rest} on {label}."
    if len(worse) == 1:
        return "bad", f"{worse[0]} is worse than {base} on {label}."
    return "good", f"{base} is better than the other {len(worse)} on {label}."


def _different_starts(runs: Sequence[RunData], names: Sequence[str], label: str) -> list[Sentence]:
    """A warning for every run that did not start with the student of the base."""
    sentences = []
    base = _eval_set(runs[0], label)
    for run, name in zip(runs[1:], names[1:], strict=True):
        other = _eval_set(run, label)
        if why_not_comparable(base, other) is not None:
            continue
        start, other_start = base.student[0].per_prompt, other.student[0].per_prompt
        difference = stats.paired(start, other_start).difference
        value, low, high = difference.value, difference.low, difference.high
        if low > 0 or high < 0:
            sentences.append(
                Sentence(
                    f"{name} started with another student than {names[0]}: compare the gains.",
                    f"before training {points(value)}, {points_range(low, high)}",
                    {"difference": value, "low": low, "high": high},
                )
            )
    return sentences


def _comparison(label: str, base: str, name: str, paired: stats.Paired) -> Sentence:
    difference = paired.difference
    if difference.low > 0:
        relation = "better than"
    elif difference.high < 0:
        relation = "worse than"
    else:
        relation = "not measurably different from"
    values = {key: getattr(difference, key) for key in ("low", "high", "n")}
    return Sentence(
        f"{label}: {name} is {relation} {base}.",
        f"{points(difference.value)}, {points_range(difference.low, difference.high)}, "
        f"{p_value(paired.p_value)}, paired over {difference.n:,} prompts",
        {"difference": difference.value} | values | {"p": paired.p_value},
    )


def _accuracy_tables(runs: Sequence[RunData], names: Sequence[str]) -> list[Part]:
    parts: list[Part] = []
    for label in _common_sets(runs):
        tasks = [_eval_set(run, label) for run in runs]
        rows: list[list[Cell]] = []
        for name, task in zip(names, tasks, strict=True):
            if task.student:
                first, final = task.student[0], task.final
                teacher: Cell = estimate(task.teacher.accuracy) if task.teacher else ""
                accuracies = [estimate(first.accuracy), estimate(final.accuracy)]
                steps = Number(final.step, f"{final.step:,}")
                rows.append([name, steps, *accuracies, _gain(first, final), teacher])
        columns = ("run", "steps", "before", "after", "gain", "teacher")
        parts.append(Table(label, columns, rows))
    return parts or [Note("The runs have no held-out set in common.")]


def _gain(first: EvalResult, final: EvalResult) -> Cell:
    if first.step == final.step:
        return ""
    gain = stats.paired(first.per_prompt, final.per_prompt).difference
    return Number(gain.value, points(gain.value), points_range(gain.low, gain.high))


def _cost_charts(compared: Sequence[Arm], labels: Sequence[str]) -> list[Chart]:
    costs = {"train/tokens": "completion tokens", "time/step_s": "seconds"}
    charts = [
        _cost_chart(compared, label, cost, unit) for label in labels for cost, unit in costs.items()
    ]
    return [chart for chart in charts if chart is not None]


def _cost_chart(compared: Sequence[Arm], label: str, cost: str, unit: str) -> Chart | None:
    """Accuracy on one set against one cost, a line per arm; None where it was not evaluated."""
    lines, data = [], {}
    for style, arm in enumerate(compared, 1):
        evaluated = [_eval_set(run, label).student for run in arm.runs]
        steps = [np.array([e.step for e in results], dtype=np.float64) for results in evaluated]
        spent = [cumulative(run, cost, at) for run, at in zip(arm.runs, steps, strict=True)]
        if len(arm.runs) == 1:
            x = spent[0]
            y, low, high = (
                np.array([getattr(e.accuracy, part) for e in evaluated[0]])
                for part in ("value", "low", "high")
            )
        else:
            accuracies = [np.array([e.accuracy.value for e in results]) for results in evaluated]
            costs = mean_line(list(zip(steps, spent, strict=True)), style)
            means = mean_line(list(zip(steps, accuracies, strict=True)), style)
            if costs is None or means is None or means.low is None or means.high is None:
                continue
            x, y, low, high = costs.y, means.y, means.low, means.high
        lines.append(Line(x, y, style, low=low, high=high, points=True))
        data[arm.name] = {"spent": x.tolist(), "accuracy": y.tolist()}
        data[arm.name] |= {"low": low.tolist(), "high": high.tolist()}
    if not any(len(line.x) for line in lines):
        return None
    svg = curves(f"{label}-{cost}", lines, scale=PERCENT)
    legend = [Legend(f"line-{style}", arm.name) for style, arm in enumerate(compared, 1)]
    note = f"{unit} so far" + _range_note(compared)
    return Chart(f"{label} against {unit}", svg, data, legend, note)


def _range_note(compared: Sequence[Arm]) -> str:
    grouped = any(len(arm.runs) > 1 for arm in compared)
    return "; groups: mean over seeds, bars from the lowest to the highest" if grouped else ""


def cumulative(run: RunData, cost: str, steps: Floats) -> Floats:
    """Sum of a cost over all steps up to and including each of `steps`."""
    series = run.series(cost)
    sums = np.concatenate([[0.0], np.cumsum(series.values)])
    values: Floats = sums[np.searchsorted(series.steps, steps, side="right")]
    return values


def _curve_charts(compared: Sequence[Arm]) -> list[Chart]:
    charts = [_curve_chart(compared, spec) for spec in (*DIAGNOSTIC_CHARTS, *ROLLOUT_CHARTS)]
    return [chart for chart in charts if chart is not None]


def _curve_chart(compared: Sequence[Arm], spec: ChartSpec) -> Chart | None:
    """The first metric of a chart, a line per arm; None where no run logged it."""
    metric, label = spec.lines[0]
    lines, legend, data = [], [], dict[str, Any]()
    for style, arm in enumerate(compared, 1):
        logged = [series for run in arm.runs if len(series := run.series(metric))]
        line = mean_line([(series.steps, series.values) for series in logged], style)
        if line is not None:
            lines.append(line)
            legend.append(Legend(f"line-{style}", arm.name))
            data[arm.name] = {"steps": line.x.tolist(), "values": line.y.tolist()}
    if not lines:
        return None
    svg = curves(spec.title, lines, scale=PERCENT if spec.percent else LINEAR)
    return Chart(spec.title, svg, data, legend, f"{label}. {spec.note}", metric)


def _differences(runs: Sequence[RunData], names: Sequence[str]) -> Table:
    """Settings and versions that differ, and the totals of every run."""
    settings = [flatten(run.config) for run in runs]
    versions = [flatten(run.env.get("versions", {})) for run in runs]
    rows = _differing_rows(settings) + _differing_rows(versions, prefix="version of ")
    tokens, times = (
        [float(run.series(name).values.sum()) for run in runs]
        for name in ("train/tokens", "time/step_s")
    )
    rows.append(["completion tokens", *(plain(count) for count in tokens)])
    rows.append(["machine time", *(Number(time, seconds(time)) for time in times)])
    return Table("Keys", ("", *names), rows)


def _differing_rows(settings: Sequence[Mapping[str, Any]], prefix: str = "") -> list[list[Cell]]:
    """Keys whose values differ between runs, with the value of each."""
    rows: list[list[Cell]] = []
    for key in sorted({key for values in settings for key in values}):
        values = [run.get(key, _UNSET) for run in settings]
        if any(value != values[0] for value in values):
            rows.append([f"{prefix}{key}", *(setting(value) for value in values)])
    return rows
