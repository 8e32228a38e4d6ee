"""The model card of an exported student: training, results with intervals, licences."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from opd.models.hub_name import split_revision
from opd.reports.document import Cell, Document, Note, Number, Section, Sentence, Table
from opd.reports.formatting import estimate, points, points_range
from opd.reports.markdown import code_span, render_markdown
from opd.reports.outcome import outcome
from opd.reports.read import RunData
from opd.reports.sanitize import short_name

_LICENSE = re.compile(r"^license:\s*([A-Za-z0-9.+-]+)\s*$", re.MULTILINE)


def model_card(run: RunData, *, kind: str, step: int, reload_check: str) -> str:
    """README.md of an exported student, with the front matter that model hubs read.

    Args:
        run: that trained it.
        kind: "weights", "adapter" or "merged weights".
        step: of the exported checkpoint.
        reload_check: result of the reload check, in words.
    """
    student, teachers = _models(run)
    front = {
        "base_model": short_name(split_revision(student)[0]),
        "library_name": "peft" if kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["on-policy-distillation", "opd"],
    }
    summary = (
        f"{_model(student)}, distilled on its own completions from "
        f"{_list(teachers or ['no teacher'])} with opd {run.env['versions'].get('opd')}: "
        f"{step} of {run.planned} steps, {kind}."
    )
    document = Document(
        run.name,
        "",
        [
            Section("summary", "", [Note(summary)]),
            Section("results", "Results", [_results(run)]),
            Section("training", "Training", [_training(run, step, reload_check)]),
            Section("licences", "Licences", _licences([student, *teachers])),
        ],
    )
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items()]
    return "\n".join(["---", *lines, "---", "", render_markdown(document)])


def _models(run: RunData) -> tuple[str, list[str]]:
    """Names of the student and of each of its teachers; itself where it is its own."""
    student = str(run.config["student"]["model"])
    several = run.config.get("teachers") or {}
    sections = [run.config["teacher"], *several.values()]
    return student, [str(t.get("model", student)) for t in sections if t]


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(_model, names))


def _model(name: str) -> str:
    """A model or file as code; of a local path only the last part is published."""
    return code_span(short_name(name))


def _results(run: RunData) -> Table | Note:
    rows: list[list[Cell]] = []
    for task in run.evals:
        result = outcome(task)
        if result is None:
            continue
        change: Cell = ""
        if result.gain is not None:
            gain = result.gain.difference
            change = Number(gain.value, points(gain.value), points_range(gain.low, gain.high))
        rows.append(
            [
                Sentence(_model(task.label)),
                Number(result.before.n, str(result.before.n)),
                estimate(result.before),
                estimate(result.after),
                "" if task.teacher is None else estimate(task.teacher.accuracy),
                change,
            ]
        )
    if not rows:
        return Note("No held-out set was evaluated.")
    columns = ("set", "prompts", "before", "after", "teacher", "paired change")
    note = "Accuracy with 95% intervals, the prompt as the unit."
    return Table("", columns, rows, note)


def _training(run: RunData, step: int, reload_check: str) -> Table:
    loss, rollout, train = (run.config[key] for key in ("loss", "rollout", "train"))
    prompts = (
        f"{_list(_prompt_files(run))}, {train['prompts_per_step']} per step, "
        f"{rollout['n']} completions each of at most {rollout['max_new_tokens']} tokens at "
        f"temperature {rollout['temperature']}"
    )
    loss_text = (
        f"`{loss['divergence']}` on `{loss['support']}`, k = {loss['k']}, mode `{loss['mode']}`"
    )
    rows: list[list[Cell]] = [
        ["Prompts", Sentence(prompts)],
        ["Loss", Sentence(loss_text)],
        ["Optimizer", f"AdamW, learning rate {run.config['optim']['lr']}, seed {train['seed']}"],
        *_changes(run, step),
        ["Reload check", reload_check],
    ]
    return Table("", ("", ""), rows)


def _changes(run: RunData, step: int) -> list[list[Cell]]:
    """What alarms changed in the run before an exported step: the other rows are its settings."""
    acted = [a for a in run.alarms if a.step < step and a.intervention and a.action != "stop"]
    texts = [f"{a.intervention} ({code_span(a.name)}, after step {a.step})" for a in acted]
    return [["Changed by alarms", Sentence("; ".join(texts))]] if texts else []


def _prompt_files(run: RunData) -> list[str]:
    prompts = run.config["prompts"]
    return [str(f["path"]) for f in prompts.get("files") or ()] or [str(prompts["path"])]


def _licences(models: Sequence[str]) -> list[Table | Note]:
    rows: list[list[Cell]] = [
        [Sentence(_model(name)), Sentence(_licence(name))] for name in dict.fromkeys(models)
    ]
    return [
        Table("", ("model", "licence"), rows),
        Note(
            "These weights derive from the student's, and were trained on the teacher's scores and "
            "on the prompts above. The terms of all three may apply; this card grants nothing."
        ),
    ]


def _licence(model: str) -> str:
    readme = Path(model) / "README.md"
    match = _LICENSE.search(readme.read_text("utf-8", "replace")) if readme.is_file() else None
    return f"`license: {match[1]}`" if match else "not stated in its folder; see there"
