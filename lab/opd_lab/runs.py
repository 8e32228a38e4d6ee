"""Runs of the lab: the product's own build and train, small, kept by content hash.

A result is the run folder without checkpoints and rollouts; whatever decides its numbers, the
source of the product included, is in its name, so nothing is run twice and nothing is stale.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import opd
from opd import config
from opd.run.console import Console
from opd.setup.session import build
from opd.training.loop import train
from opd_lab.worlds import World, write_prompts

PACKAGES = {"opd": Path(opd.__file__).parent, "opd_lab": Path(__file__).parent}
# What cannot change a number: everything else is part of the cache's key, new modules included.
NO_NUMBERS = (
    "opd/cli.py",
    "opd/__main__.py",
    "opd/commands/",
    "opd/demo/",
    "opd/reports/",
    "opd/config/template.py",
    "opd/config/__main__.py",
    "opd/run/console.py",
    "opd/run/trackers.py",
    "opd/run/env.py",
    "opd/teachers/scoring_server.py",
    "opd_lab/cli.py",
    "opd_lab/commands.py",
    "opd_lab/page.py",
    "opd_lab/sheet.py",
    "opd_lab/demo_pair.py",
    "opd_lab/alarm_trial.py",
    "opd_lab/auto_trial.py",
    "opd_lab/experiments/",
    "opd_lab/calibration/",
)
SLACK = 6  # tokens beyond the longest well-formed completion


@dataclass(frozen=True)
class Task:
    """What is trained and evaluated on: problems of a world.

    Attributes:
        world: source of problems.
        horizon: reasoning steps of the training problems; None: the world's own.
        held_out: horizons that are evaluated, each a set of its own; None: that of training.
        train: number of training problems.
        test: number of held-out problems a set.
    """

    world: World
    horizon: int | None = None
    held_out: tuple[int | None, ...] = (None,)
    train: int = 2000
    test: int = 512

    @property
    def max_new_tokens(self) -> int:
        """Room for the longest completion, and a little for rambling."""
        return max(self.world.max_tokens(n) for n in (self.horizon, *self.held_out)) + SLACK

    def files(self, seed: int, cache: Path) -> dict[str, Path]:
        """Prompt files by name, written if absent: `train`, and `task` or `n<horizon>`."""
        wanted: dict[str, tuple[int, int | None, bool]] = {
            "train": (self.train, self.horizon, False)
        }
        for n in self.held_out:
            wanted["task" if n is None else f"n{n}"] = (self.test, n or self.horizon, True)
        found = {}
        for name, (count, horizon, held_out) in wanted.items():
            key = digest(repr((self.world, count, horizon, held_out, seed)))
            found[name] = cache / "prompts" / f"{name}-{key}.jsonl"
            if not found[name].exists():
                problems = self.world.problems(count, seed, horizon=horizon, held_out=held_out)
                found[name].parent.mkdir(parents=True, exist_ok=True)
                part = found[name].with_suffix(f".{os.getpid()}")
                write_prompts(part, problems)
                part.rename(found[name])
        return found


@dataclass(frozen=True)
class Result:
    """A finished run."""

    path: Path

    def rows(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl."""
        return self.lines("metrics.jsonl")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Lines of a journal."""
        return [json.loads(line) for line in (self.path / name).read_text("utf-8").splitlines()]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a logged metric."""
        found = [(row["step"], row[name]) for row in self.rows() if row.get(name) is not None]
        return [s for s, _ in found], [v for _, v in found]

    def accuracy(self, name: str = "task") -> float:
        """Held-out accuracy at the end."""
        return self.curve(f"eval/{name}/accuracy")[1][-1]

    def first(self, name: str) -> float:
        """A metric at the start: its mean over the first two steps."""
        return float(np.mean(self.curve(name)[1][:2]))

    def last(self, name: str) -> float:
        """A metric at the end: its mean over the last five steps."""
        return float(np.mean(self.curve(name)[1][-5:]))

    def correct(self, step: int, name: str = "task") -> np.ndarray:
        """Accuracy of each held-out problem after a step, (problems,)."""
        record = json.loads((self.path / "eval" / f"step-{step}-{name}.json").read_text())
        share: np.ndarray = np.array(record["correct"], dtype=float).mean(1)
        return share

    def seconds(self) -> float:
        """Time of all steps, evaluations left out."""
        return self.clock()[-1]

    def clock(self) -> list[float]:
        """Seconds spent up to and including each step, evaluations left out."""
        spent = [
            row["time/step_s"] - row.get("time/evaluate_s", 0.0)
            for row in self.lines("timings.jsonl")
        ]
        return [float(total) for total in np.cumsum(spent)]

    def tokens(self) -> list[float]:
        """Completion tokens written up to and including each step."""
        return [float(total) for total in np.cumsum(self.curve("train/tokens")[1])]


def run(
    student: Path,
    teacher: Path | None,
    task: Task,
    *,
    seed: int,
    cache: Path,
    changes: Sequence[str] = (),
) -> Result:
    """One run of the product; its folder is taken from the cache if it is there.

    Args:
        student: checkpoint folder; its name must say what is in it, as the zoo's do.
        teacher: likewise; None for training on the outcome reward.
        task: what is trained and evaluated on.
        seed: of prompts and rollouts.
        cache: where results are kept.
        changes: overrides as the command line takes them, such as `loss.k=4`.

    Raises:
        UserError: a configuration that the product refuses.
    """
    names = (student.name, None if teacher is None else teacher.name, repr(task), seed)
    folder = cache / "runs" / digest(repr(names), *changes, source_hash())
    if folder.is_dir():
        return Result(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent)) / "run"
    cfg = config.parse(run_config(student, teacher, task, seed, cache, made), changes)
    with one_thread():
        parts = build(cfg, resume=False, overwrite=True, console=Console("quiet"))
        try:
            train(parts)
        finally:
            parts.trackers.close()
            parts.folder.close()
    for rest in ("checkpoints", "rollouts"):
        shutil.rmtree(made / rest)
    keep(made, folder)
    shutil.rmtree(made.parent)
    return Result(folder)


def run_config(
    student: Path, teacher: Path | None, task: Task, seed: int, cache: Path, out: Path
) -> dict[str, Any]:
    """The lab's defaults as a run.yaml: 40 steps of 16 prompts x 4, small diagnostics."""
    files = task.files(seed, cache)
    test = {"temperature": 1.0, "top_p": 1.0, "n": 1, "every": 10, "grader": "exact"}
    evals = [
        {"path": str(path), "name": name, **test} for name, path in files.items() if name != "train"
    ]
    return {
        "student": {"model": str(student)},
        "teacher": None if teacher is None else {"model": str(teacher)},
        "prompts": {"path": str(files["train"]), "max_tokens": 128, "grader": "exact"},
        "rollout": {"n": 4, "max_new_tokens": task.max_new_tokens, "batch": 512},
        "loss": {"k": 16},
        "diagnostics": {"positions": 512},
        "optim": {"lr": 1e-3},
        "train": {"steps": 40, "prompts_per_step": 16, "seed": seed},
        "eval": evals,
        "output": {"dir": str(out), "save_every": 10**6, "keep": 1, "rollout_sample": 0},
    }


def keep(made: Path, folder: Path) -> None:
    """Give a finished folder its name; somebody else may have been faster."""
    for path in (made, *made.rglob("*")):  # temporary folders and weights come closed to others
        path.chmod(0o755 if path.is_dir() else 0o644)
    if folder.is_dir():
        shutil.rmtree(made)
    else:
        os.rename(made, folder)


def digest(*parts: str) -> str:
    """A short name for given texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@cache
def source_hash() -> str:
    """Hash of all code that can change a number, and torch's version.

    Layout, comments and docstrings are left out; so are the modules of `NO_NUMBERS`.
    """
    code = hashlib.sha256(torch.__version__.encode())
    for name, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            module = f"{name}/{path.relative_to(folder).as_posix()}"
            if not module.startswith(NO_NUMBERS):
                code.update(f"{module}\0{bare_code(path.read_text('utf-8'))}\0".encode())
    return code.hexdigest()


def bare_code(text: str) -> str:
    """Python source without layout, comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, then as before: a different split of a sum is a different sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
