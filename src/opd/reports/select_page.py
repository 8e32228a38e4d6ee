"""What `opd select` found, as the sections of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opd.reports.document import (
    Cell,
    Chart,
    Charts,
    Legend,
    Number,
    Part,
    Section,
    Sentence,
    Table,
    Verdict,
)
from opd.reports.plots import Line, curves


def selected_sections(record: Mapping[str, Any]) -> list[Section]:
    """Verdict, groups, templates, entropy by mixing ratio, leaks.

    Args:
        record: as `opd.commands.select.record_of` makes it.
    """
    headline, *more = record["said"]
    sections = [
        Section(
            "verdict",
            "What was selected",
            [Verdict(headline, "good", [], [Sentence(text) for text in more])],
        ),
        Section("groups", "What was measured", [_groups(record["groups"]), _pictures(record)]),
    ]
    if record["templates"]:
        sections.append(Section("templates", "Templates", [_templates(record)]))
    if record["leaks"]:
        sections.append(Section("leaks", "Evaluation sets", [_leaks(record["leaks"])]))
    return sections


def _groups(groups: Mapping[str, Mapping[str, float | None]]) -> Part:
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    rows: list[list[Cell]] = [
        [label, *(_cell(group.get(name), whole=name == "prompts") for name in names)]
        for label, group in groups.items()
    ]
    columns = ("prompts are", *(name.replace("_", " ") for name in names))
    return Table(
        "Means over prompts",
        columns,
        rows,
        "Accuracies are of n responses a prompt; advantage is their difference after each was "
        "shrunk to its mean; mixed: the chance that k responses of the student hold a right and a "
        "wrong one; overlap mass and teacher entropy are of the student's own rollouts.",
    )


def _cell(value: float | None, *, whole: bool = False) -> Cell:
    if value is None:
        return ""
    return Number(value, f"{value:.0f}" if whole else f"{value:.3f}")


def _pictures(record: Mapping[str, Any]) -> Part:
    mixed = record["mixture"]
    charts = []
    lines, legend = [], []
    for style, (key, words) in enumerate(
        (("teacher", "teacher, on the student's rollouts"), ("student", "student, before")), 1
    ):
        if None not in mixed[key]:
            lines.append(Line(np.array(mixed["shares"]), np.array(mixed[key]), style, points=True))
            legend.append(Legend(f"line-{style}", words))
    if lines:
        charts.append(
            Chart(
                "Entropy in nats by share of prompts from the rest",
                curves("entropy-by-share", lines),
                dict(mixed),
                legend,
            )
        )
    advantage = record["ranking"]["advantage"]
    if None not in advantage:
        places = np.arange(1, len(advantage) + 1, dtype=np.float64)
        charts.append(
            Chart(
                "Teacher advantage by rank",
                curves("advantage-by-rank", [Line(places, np.array(advantage), 1)]),
                {"rank": places.tolist(), "advantage": advantage},
                [Legend("line-1", "teacher minus student accuracy, shrunk; best score first")],
            )
        )
    return Charts(charts)


def _templates(record: Mapping[str, Any]) -> Part:
    rows: list[list[Cell]] = []
    for each in record["templates"]:
        picked = " (picked)" if each["name"] == record["template"] else ""
        rows.append(
            [
                each["name"] + picked,
                _cell(each["teacher"]),
                _with_interval(each["better"]),
                _cell(each["mass"]),
                _with_interval(each["closer"]),
            ]
        )
    return Table(
        "Candidates on the same prompts, differences to the configured template paired by prompt",
        ("template", "teacher accuracy", "difference", "overlap mass", "difference"),
        rows,
        "Another template is picked only if the teacher is more often right with it, or as often "
        "and the overlap mass higher, by a 95 % interval that excludes 0.",
    )


def _with_interval(estimate: Mapping[str, Any]) -> Cell:
    if estimate["value"] is None:
        return ""
    low, high = estimate["low"], estimate["high"]
    return Number(estimate["value"], f"{estimate['value']:+.3f}", f"{low:+.3f} to {high:+.3f}")


def _leaks(leaks: list[Mapping[str, Any]]) -> Part:
    rows: list[list[Cell]] = [
        [
            Number(leak["row"], str(leak["row"])),
            leak["label"],
            Number(leak["eval_row"], str(leak["eval_row"])),
            "same letters and digits" if leak["exact"] else "nearly the same",
        ]
        for leak in leaks
    ]
    return Table(
        "Prompts left out because an evaluation set asks the same",
        ("row", "evaluation set", "its row", "how"),
        rows,
        "Letters and digits alone are compared, so problems that differ in an operator look the "
        "same; they are left out too.",
    )
