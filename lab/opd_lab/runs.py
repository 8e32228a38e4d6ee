"""Runs of the lab: the product's own session and loop, small, kept by content hash.

A result is the run folder without checkpoints and rollouts. Whatever decides its numbers is in its
name (see `cache_key`), so nothing runs twice and nothing is stale.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opd import config
from opd.recipes.distillation import distill
from opd.run.console import Console
from opd.setup.session import build
from opd.training.session import Session
from opd_lab.cache_key import digest, source_hash
from opd_lab.worlds import World, write_prompts

EXTRA_TOKENS = 6  # allowed beyond the longest well-formed completion


@dataclass(frozen=True)
class Task:
    """What is trained and evaluated on: problems of a world.

    Attributes:
        world: source of problems.
        depth: reasoning steps of the training problems; None: the world's own.
        eval_depths: depths that are evaluated, each a set of its own; None: that of training.
        train: number of training problems.
        test: number of held-out problems per set.
    """

    world: World
    depth: int | None = None
    eval_depths: tuple[int | None, ...] = (None,)
    train: int = 2000
    test: int = 512

    @property
    def max_new_tokens(self) -> int:
        """Length of the longest well-formed completion, and `EXTRA_TOKENS` more."""
        longest = max(self.world.max_tokens(n) for n in (self.depth, *self.eval_depths))
        return longest + EXTRA_TOKENS

    def files(self, seed: int, cache: Path) -> dict[str, Path]:
        """Prompt files by name, written if absent: `train`, and `task` or `n<depth>`."""
        files = {"train": self._file("train", self.depth, seed, cache)}
        for depth in self.eval_depths:
            name = "task" if depth is None else f"n{depth}"
            files[name] = self._file(name, depth or self.depth, seed, cache)
        return files

    def _file(self, name: str, depth: int | None, seed: int, cache: Path) -> Path:
        count, held_out = (self.train, False) if name == "train" else (self.test, True)
        key = digest(repr((self.world, count, depth, held_out, seed)))
        path = cache / "prompts" / f"{name}-{key}.jsonl"
        if not path.exists():
            problems = self.world.problems(count, seed, depth=depth, held_out=held_out)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}")
            write_prompts(part, problems)
            part.rename(path)
        return path


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    path: Path

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl."""
        return self.lines("metrics.jsonl")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Lines of a JSONL file of the run folder."""
        return [json.loads(line) for line in (self.path / name).read_text("utf-8").splitlines()]

    def record(self, name: str) -> dict[str, Any]:
        """A JSON file of the run folder."""
        content: dict[str, Any] = json.loads((self.path / name).read_text("utf-8"))
        return content

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a logged metric."""
        points = [(row["step"], row[name]) for row in self.metrics() if row.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def accuracy(self, name: str = "task") -> float:
        """Held-out accuracy at the end."""
        return self.curve(f"eval/{name}/accuracy")[1][-1]

    def initial_accuracy(self, name: str = "task") -> float:
        """Held-out accuracy before training."""
        return self.curve(f"eval/{name}/accuracy")[1][0]

    def first(self, name: str) -> float:
        """A metric at the start: its mean over the first two steps."""
        return float(np.mean(self.curve(name)[1][:2]))

    def last(self, name: str) -> float:
        """A metric at the end: its mean over the last five steps."""
        return float(np.mean(self.curve(name)[1][-5:]))

    def correct(self, step: int, name: str = "task") -> np.ndarray:
        """Accuracy of each held-out problem after a step, (problems,)."""
        correct = np.array(self.record(f"eval/step-{step}-{name}.json")["correct"], dtype=float)
        per_problem: np.ndarray = correct.mean(1)
        return per_problem

    def seconds(self) -> float:
        """Time of all steps, evaluations left out."""
        return self.cumulative_seconds()[-1]

    def cumulative_seconds(self) -> list[float]:
        """Time up to and including each step, evaluations left out."""
        per_step = [
            row["time/step_s"] - row.get("time/evaluate_s", 0.0)
            for row in self.lines("timings.jsonl")
        ]
        return [float(total) for total in np.cumsum(per_step)]

    def cumulative_tokens(self) -> list[float]:
        """Completion tokens sampled up to and including each step."""
        return [float(total) for total in np.cumsum(self.curve("train/tokens")[1])]


def run(
    student: Path,
    teacher: Path | None,
    task: Task,
    *,
    seed: int,
    cache: Path,
    changes: Sequence[str] = (),
    edit: Callable[[Session], Session] | None = None,
) -> RunResult:
    """One run of the product; its folder is taken from the cache if it is there.

    Args:
        student: checkpoint folder; its name must identify its content, as the zoo's names do.
        teacher: likewise; None for training on the outcome reward.
        task: what is trained and evaluated on.
        seed: of prompts and rollouts.
        cache: where results are kept.
        changes: overrides as the command line takes them, such as `loss.k=4`.
        edit: a function of the lab that changes what no key does.

    Raises:
        UserError: a configuration that the product refuses.
    """
    names = (student.name, None if teacher is None else teacher.name, repr(task), seed)
    folder = (
        cache
        / "runs"
        / digest(
            repr(names), *changes, *([] if edit is None else [edit.__qualname__]), source_hash()
        )
    )
    if folder.is_dir():
        return RunResult(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent)) / "run"
    data = run_config(student, teacher, task, task.files(seed, cache), seed, made)
    cfg = config.parse(data, changes)
    with one_thread():
        session, completions = build(cfg, resume=False, overwrite=True, console=Console("quiet"))
        try:
            distill(session if edit is None else edit(session), completions)
        finally:
            session.trackers.close()
            session.folder.close()
    for unused in ("checkpoints", "rollouts"):
        shutil.rmtree(made / unused)
    publish(made, folder)
    shutil.rmtree(made.parent)
    return RunResult(folder)


def run_config(
    student: Path,
    teacher: Path | None,
    task: Task,
    files: Mapping[str, Path],
    seed: int,
    out: Path,
) -> dict[str, Any]:
    """The lab's defaults as a run.yaml: 40 steps of 16 prompts x 4, small diagnostics.

    Args:
        student: checkpoint folder.
        teacher: likewise; None for training on the outcome reward.
        task: what is trained and evaluated on.
        files: its prompt files by name.
        seed: of the run.
        out: run folder.
    """
    test = {"temperature": 1.0, "top_p": 1.0, "n": 1, "every": 10, "grader": "exact"}
    evals = [
        {"path": str(path), "name": name, **test} for name, path in files.items() if name != "train"
    ]
    return {
        "student": {"model": str(student)},
        "teacher": None if teacher is None else {"model": str(teacher)},
        "prompts": {"path": str(files["train"]), "max_tokens": 128, "grader": "exact"},
        "rollout": {"n": 4, "max_new_tokens": task.max_new_tokens},
        "loss": {"k": 16},
        "diagnostics": {"positions": 512},
        "optim": {"lr": 1e-3},
        "train": {"steps": 40, "prompts_per_step": 16, "seed": seed},
        "eval": evals,
        "output": {"dir": str(out), "save_every": 10**6, "keep": 1, "rollout_sample": 0},
    }


def publish(made: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process was faster."""
    for path in (made, *made.rglob("*")):  # temporary folders and weights are private at first
        path.chmod(0o755 if path.is_dir() else 0o644)
    if folder.is_dir():
        shutil.rmtree(made)
    else:
        os.rename(made, folder)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, then as before: a different split of a sum is a different sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def only_errors() -> Iterator[None]:
    """Leave out what `opd` warns of, which runs of a trial provoke on purpose."""
    ours = logging.getLogger("opd")
    before = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(before)
