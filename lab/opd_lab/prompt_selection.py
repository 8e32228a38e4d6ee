"""What `opd select` keeps of a task's prompts, and as many prompts at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opd.commands.select.result import Selection
from opd.commands.select.rows import output_rows, write_rows
from opd.commands.select.run import select
from opd.config import parse
from opd.run.console import Console
from opd_lab.cache_key import digest
from opd_lab.runs import Task, one_thread, run_config


@dataclass(frozen=True)
class PromptSelection:
    """A selection, with what it rests on.

    Attributes:
        texts: the prompts that were measured, (P,).
        aligned: indices of those called aligned.
        measures: score and its parts by name, each (P,); higher is better.
        selected: prompt file of what is kept.
        random: prompt file of as many prompts of the task, its first ones.
    """

    texts: list[str]
    aligned: list[int]
    measures: Mapping[str, np.ndarray]
    selected: Path
    random: Path


def select_prompts(
    student: Path, teacher: Path, task: Task, limit: int, *, seed: int, cache: Path
) -> PromptSelection:
    """Select among the training prompts of a task.

    Args:
        student: checkpoint folder.
        teacher: likewise.
        task: whose training prompts are measured.
        limit: how many of them are measured.
        seed: of prompts and rollouts.
        cache: where prompt files are kept.
    """
    files = task.files(seed, cache)
    data = run_config(student, teacher, task, files, seed, cache / "none")
    data |= {"eval": [], "select": {"output": "none.jsonl", "limit": limit, "n": 8}}
    cfg = parse(data)
    assert cfg.select is not None
    with one_thread():
        selection = select(cfg, cfg.select, Console("quiet"))
    rows = files["train"].read_text("utf-8").splitlines()
    random_rows = rows[: len(selection.aligned) + len(selection.others)]
    random = _content_path(cache, "random", random_rows)
    random.write_text("\n".join(random_rows) + "\n", encoding="utf-8")
    selected_rows = output_rows(cfg, cfg.select, selection)
    selected = _content_path(cache, "selected", [repr(row) for row in selected_rows])
    write_rows(selected, selected_rows)
    return PromptSelection(
        texts=[prompt.text for prompt in selection.prompts],
        aligned=selection.aligned,
        measures=_measures(selection),
        selected=selected,
        random=random,
    )


def _content_path(cache: Path, name: str, lines: list[str]) -> Path:
    """A file name that changes with the content: runs are cached by the path of their prompts."""
    return cache / "prompts" / f"{name}-{digest(*lines)}.jsonl"


def _measures(selection: Selection) -> dict[str, np.ndarray]:
    return {
        "score": selection.ranking.score,
        "advantage": selection.ranking.advantage,
        "mixed": selection.ranking.mixed,
        "mass": selection.measurements.overlap_mass,
        "entropy": -selection.measurements.teacher_entropy,
    }
