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

from opd import config
from opd.demo.run_config import write_prompts
from opd.lab.worlds import World
from opd.run.console import Console
from opd.setup.session import build
from opd.training.loop import train

PACKAGE = Path(__file__).parents[1]
# Everything that decides a number; faces, server teachers, report and bookkeeping do not.
SOURCES = (
    "core/*.py",
    "models/lm.py",
    "models/head.py",
    "data/prompts.py",
    "data/answers.py",
    "data/graders.py",
    "samplers/hf.py",
    "teachers/local.py",
    "recipes/sft.py",
    "training/horizon.py",
    "training/interventions.py",
    "training/guard.py",
    "alarms/*.py",
    "training/experience.py",
    "training/step.py",
    "training/loop.py",
    "training/evaluate.py",
    "lab/worlds/*.py",
    "lab/corpus.py",
    "lab/runs.py",
    "lab/zoo.py",
)
# Decides the numbers of runs with a cold start alone.
COLD_SOURCES = (
    "recipes/coldstart.py",
    "setup/coldstart_source.py",
    "data/filters.py",
    "data/duplicates.py",
    "data/sft_examples.py",
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
    cold = any(change.startswith("coldstart") for change in changes)
    code = source_hash((*SOURCES, *COLD_SOURCES) if cold else SOURCES)
    folder = cache / "runs" / digest(repr(names), *changes, code)
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
def source_hash(sources: tuple[str, ...] = SOURCES) -> str:
    """Hash of the code that decides numbers, layout and comments left out, and torch's version."""
    found = hashlib.sha256(torch.__version__.encode())
    for pattern in sources:
        for path in sorted(PACKAGE.glob(pattern)):
            found.update(ast.unparse(ast.parse(path.read_text("utf-8"))).encode())
    return found.hexdigest()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, then as before: a different split of a sum is a different sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
