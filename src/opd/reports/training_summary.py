"""The result of a training run, as `opd train` prints it: accuracies, gap recovery, files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opd.core.stats import Estimate
from opd.reports.document import Cell, Code, Document, Note, Number, Part, Section, Table
from opd.reports.formatting import estimate, points, points_range


def training_summary(summary: Mapping[str, Any]) -> Document:
    """A document without a title, for the terminal.

    Args:
        summary: as in summary.json.
    """
    sections = [Section("phases", "", [Note(text) for text in _phases(summary)])]
    for label, entry in summary["sets"].items():
        title = f"Accuracy on {label} (95% intervals)"
        sections.append(Section(f"set-{label}", title, _held_out_set(entry)))
    folder = summary["run"]
    files = [Code("Run folder", folder), Code("Final student", f"{folder}/final")]
    return Document("", "", [*sections, Section("files", "", files)])


def _phases(summary: Mapping[str, Any]) -> list[str]:
    texts = []
    if "coldstart" in summary:
        record = summary["coldstart"]
        texts.append(
            f"Cold start: {record['tokens']} off-policy tokens of {record['completions']} "
            f"completions in {record['rounds']} rounds, until {record['reason']}."
        )
    if "stopped" in summary:
        alarm, kept_step = summary["stopped"], summary["steps"]
        best = "" if kept_step == alarm["step"] else ", the best on held-out prompts"
        texts.append(
            f"Stopped at step {alarm['step']} by the alarm {alarm['name']}; the final student is "
            f"that of step {kept_step}{best}."
        )
    if "kept" in summary:
        kept = summary["kept"]
        texts.append(
            f"The student after {kept['after']} steps is worse on held-out prompts than the best "
            f"one before; the final student is that of step {kept['step']}."
        )
    return texts


def _held_out_set(entry: Mapping[str, Any]) -> list[Part]:
    """Accuracies of one set as a table, and how much of the gap to the teacher was recovered.

    Args:
        entry: of the set in summary.json.
    """
    rows: list[list[Cell]] = [
        [model, estimate(Estimate(**entry[model]))]
        for model in ("before", "after", "teacher")
        if model in entry
    ]
    if "change" in entry:
        rows.append(["change", _change(Estimate(**entry["change"]))])
    parts: list[Part] = [Table("", ("", ""), rows)]
    if "note" in entry:
        parts.append(Note(entry["note"]))
    if entry.get("gap_recovery") is not None:
        recovered = estimate(Estimate(**entry["gap_recovery"]))
        parts.append(
            Note(f"{recovered.text} of the gap to the teacher was recovered ({recovered.note}).")
        )
    elif "teacher" in entry:
        parts.append(Note("The teacher is not measurably better: there is no gap to recover."))
    return parts


def _change(difference: Estimate) -> Number:
    low, high = difference.low, difference.high
    verdict = "worse" if high < 0 else "better" if low > 0 else "no measurable change"
    note = f"{points_range(low, high)}: {verdict}"
    return Number(difference.value, points(difference.value), note)
