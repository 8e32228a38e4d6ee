"""The result of `opd select` as a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opd.reports.document import (
    Cell,
    Chart,
    Charts,
    Document,
    Legend,
    Number,
    Section,
    Sentence,
    Table,
    Verdict,
)
from opd.reports.plots import Line, curves


def select_document(record: Mapping[str, Any], *, source: str) -> Document:
    """Verdict, prompt groups, templates, entropy by mixing ratio, leaked evaluation prompts.

    Args:
        record: as `opd.commands.select.record` makes it.
        source: path of the prompts, shown as the subtitle.
    """
    headline, *more = record["summary"]
    verdict = Verdict(headline, "good", [], [Sentence(text) for text in more])
    sections = [
        Section("verdict", "Selected prompts", [verdict]),
        Section("groups", "Measurements", [_groups(record["groups"]), _charts(record)]),
    ]
    if record["templates"]:
        sections.append(Section("templates", "Templates", [_templates(record)]))
    if record["leaks"]:
        sections.append(Section("leaks", "Evaluation sets", [_leaks(record["leaks"])]))
    return Document("Prompts for this pair", source, sections, source="opd select")


def _groups(groups: Mapping[str, Mapping[str, float | None]]) -> Table:
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    rows: list[list[Cell]] = [
        [label, *(_cell(group.get(name), integer=name == "prompts") for name in names)]
        for label, group in groups.items()
    ]
    columns = ("group of prompts", *(name.replace("_", " ") for name in names))
    return Table(
        "Means over prompts",
        columns,
        rows,
        "Accuracies are of n completions per prompt; advantage is their difference after each was "
        "shrunk to its mean; mixed: the probability that k completions of the student contain a "
        "correct and an incorrect one; overlap mass and teacher entropy are measured on the "
        "student's own rollouts.",
    )


def _cell(value: float | None, *, integer: bool = False) -> Cell:
    if value is None:
        return ""
    return Number(value, f"{value:.0f}" if integer else f"{value:.3f}")


def _charts(record: Mapping[str, Any]) -> Charts:
    charts = (_entropy_by_mixture(record["mixture"]), _advantage_by_rank(record["ranking"]))
    return Charts([chart for chart in charts if chart is not None])


def _entropy_by_mixture(mixture: Mapping[str, Sequence[float | None]]) -> Chart | None:
    labels = {"teacher": "teacher, on the student's rollouts", "student": "student, before"}
    lines, legend = [], []
    for style, (key, label) in enumerate(labels.items(), 1):
        if None not in mixture[key]:
            x, y = np.array(mixture["fractions"]), np.array(mixture[key])
            lines.append(Line(x, y, style, points=True))
            legend.append(Legend(f"line-{style}", label))
    if not lines:
        return None
    title = "Entropy in nats by fraction of prompts from the rest"
    return Chart(title, curves("entropy-by-fraction", lines), dict(mixture), legend)


def _advantage_by_rank(ranking: Mapping[str, Any]) -> Chart | None:
    advantage = ranking["advantage"]
    if None in advantage:
        return None
    ranks = np.arange(1, len(advantage) + 1, dtype=np.float64)
    return Chart(
        "Teacher advantage by rank",
        curves("advantage-by-rank", [Line(ranks, np.array(advantage), 1)]),
        {"rank": ranks.tolist(), "advantage": advantage},
        [Legend("line-1", "teacher minus student accuracy, shrunk; best score first")],
    )


def _templates(record: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for template in record["templates"]:
        selected = " (selected)" if template["name"] == record["template"] else ""
        rows.append(
            [
                template["name"] + selected,
                _cell(template["teacher_accuracy"]),
                _with_interval(template["accuracy_difference"]),
                _cell(template["overlap_mass"]),
                _with_interval(template["overlap_difference"]),
            ]
        )
    return Table(
        "Candidates on the same prompts, differences to the configured template paired by prompt",
        ("template", "teacher accuracy", "difference", "overlap mass", "difference"),
        rows,
        "Another template is selected only if the teacher is correct more often with it, or as "
        "often and the overlap mass is higher, by a 95% interval that excludes 0.",
    )


def _with_interval(estimate: Mapping[str, Any]) -> Cell:
    if estimate["value"] is None:
        return ""
    low, high = estimate["low"], estimate["high"]
    return Number(estimate["value"], f"{estimate['value']:+z.3f}", f"{low:+z.3f} to {high:+z.3f}")


def _leaks(leaks: list[Mapping[str, Any]]) -> Table:
    rows: list[list[Cell]] = [
        [
            Number(leak["row"], str(leak["row"])),
            leak["label"],
            Number(leak["eval_row"], str(leak["eval_row"])),
            "same letters and digits" if leak["exact"] else "near duplicate",
        ]
        for leak in leaks
    ]
    return Table(
        "Prompts left out because an evaluation set contains them",
        ("row", "evaluation set", "its row", "match"),
        rows,
        "Only letters and digits are compared, so problems that differ in an operator alone count "
        "as duplicates; they are left out too.",
    )
