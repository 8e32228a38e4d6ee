"""A check as text on the terminal, as a record with its report, and as a file with its advice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from opd import config
from opd.commands.check.result import CheckResult, TeacherResult
from opd.commands.check.rounds import Probe
from opd.commands.outputs import record_paths
from opd.config import Run
from opd.core.stats import Estimate
from opd.recipes.check.advice import Advice
from opd.recipes.check.features import ON_STUDENT, quarter_means
from opd.recipes.check.reasons import confidence
from opd.recipes.check.settings import begins_cold
from opd.recipes.check.verdict import nothing_accepted
from opd.reports.check_page import check_document
from opd.reports.html import write_report
from opd.reports.terminal import render_text
from opd.run.console import Console
from opd.run.disk import encode_json, write_output
from opd.run.jsonl import flatten, json_safe

BY_QUARTER = (
    "overlap_ratio",
    "overlap_mass",
    "overlap_mass_teacher",
    "overlap_advantage",
    "entropy_gap",
    "reverse_kl",
)


def to_record(result: CheckResult) -> dict[str, Any]:
    """The whole result as plain JSON."""
    best = result.best
    cfg = best.candidate.cfg
    record: dict[str, Any] = {
        "file": result.file,
        "verdict": best.verdict,
        "reasons": [r.record() for r in best.reasons],
        "advice": [a.record() for a in best.advice],
        "cold_start": begins_cold(cfg),
        "confidence": None
        if best.forecast is None
        else confidence(best.forecast, best.features, cold_start=begins_cold(cfg)),
        "numbers": {name: asdict(e) for name, e in best.features.items()},
        "teachers": [_teacher_record(teacher) for teacher in result.teachers],
        "prompts": 0 if result.student is None else len(result.student.prompts),
        "limitations": list(result.limitations),
        "examples": list(result.examples),
        "seconds": round(result.seconds, 1),
    }
    if result.cost is not None:
        cost = asdict(result.cost) | {"seconds": result.cost.seconds}
        record["plan"] = cost | {"check_share": result.seconds / result.cost.seconds}
    record["pair"] = {
        "student": cfg.student.model,
        "teacher": None if cfg.teacher is None else cfg.teacher.model,
    }
    safe: dict[str, Any] = json_safe(record)
    return safe


def _teacher_record(result: TeacherResult) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": result.candidate.label,
        "verdict": result.verdict,
        "compatibility": [asdict(f) for f in result.candidate.findings],
        "reasons": [r.record() for r in result.reasons],
        "advice": [a.record() for a in result.advice],
        "numbers": {name: asdict(e) for name, e in result.features.items()},
    }
    if result.candidate.memory is not None:
        record["memory"] = result.candidate.memory.plan.record()
    if result.forecast is not None:
        record["forecast"] = result.forecast.record()
    if result.side is not None:
        record["by_quarter"] = _quarters(result)
    return record


def _quarters(result: TeacherResult) -> dict[str, list[float]]:
    """The positional metrics that the teacher's side of the probe has, by quarter."""
    if result.side is None:
        return {}
    diagnosis = result.side.on_student
    return {
        name: quarter_means(diagnosis, ON_STUDENT[name])
        for name in BY_QUARTER
        if ON_STUDENT[name] in diagnosis.mean
    }


def print_result(record: Mapping[str, Any], console: Console, *, json_lines: bool) -> None:
    """Print the record as text, or as one line of JSON."""
    if json_lines:
        console.out.print_json(json.dumps(record), indent=None)
        return
    for line in render_text(check_document(record)):
        console.print(line)


def examples(probe: Probe, features: Mapping[str, Estimate]) -> list[dict[str, str]]:
    """Two graded answers of the student, where no answer of either model was accepted."""
    if probe.student is None or not nothing_accepted(features):
        return []
    return [
        {
            "who": "The student",
            "prompt": rollout.prompt.text[-200:],
            "answer": rollout.prompt.answer or "",
            "text": probe.config.decode(rollout.ids.tolist())[-200:],
        }
        for rollout in probe.student.rollouts[:: probe.config.n][:2]
    ]


def save_record(cfg: Run, record: Mapping[str, Any], console: Console) -> None:
    """Write the record and its report beside the run folder, where `opd train` finds them."""
    path, html = record_paths(cfg)
    write_output(path, encode_json(record))
    report = write_report(check_document(record), html)
    console.print(f"Record: {path}   Report: {report}")


def apply_advice(
    file: Path, overrides: Sequence[str], best: Run, advice: Sequence[Advice], out: Path
) -> None:
    """Write the file anew with overrides, the best teacher and the advice in it.

    Raises:
        UserError: the advice does not fit the file.
    """
    data = config.overridden(config.read(file), overrides)
    if isinstance(data.get("teacher"), list) and best.teacher is not None:
        data["teacher"] = best.teacher.model_dump(mode="json", exclude_unset=True)
    flat = [flatten(dict(each.set)) for each in advice]  # other keys of a section stay
    changes = [f"{k}={json.dumps(v)}" for each in flat for k, v in each.items()]
    data = config.overridden(data, changes)
    config.validate(data, where=f"{file} with the advice")
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    write_output(out, text.encode("utf-8", "backslashreplace"))
