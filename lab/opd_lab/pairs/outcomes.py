"""What training does to a pair: one run of the product, and its accuracies as a record."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import opd
from opd import config
from opd.config import Run
from opd.errors import UserError
from opd.recipes.distillation import distill
from opd.run.console import Console
from opd.run.env import git_state
from opd.setup.session import build
from opd_lab.pairs.design import PlannedRun
from opd_lab.pairs.models import build_model, weights_digest
from opd_lab.pairs.real import RealRun, configure_real
from opd_lab.runs import RunResult, Task, one_thread, run_config

AnyRun = PlannedRun | RealRun
TEST = 256  # held-out prompts, twice each
FIXED = ("eval.0.n=2",)


def configure(run: PlannedRun, cache: Path, out: Path) -> tuple[Run, dict[str, Any]]:
    """The configuration of a run, and the part of its record that is known before it.

    Args:
        run: of the design.
        cache: where models and prompts are kept; missing ones are built.
        out: run folder.
    """
    began = time.monotonic()
    setting = run.setting
    folders = {
        role: build_model(setting, kind, run.model_seed, cache)
        for role, kind in (("student", run.student), ("teacher", run.teacher))
    }
    task = Task(setting.world, train=2000, test=TEST)
    data = run_config(
        folders["student"], folders["teacher"], task, task.files(run.seed, cache), run.seed, out
    )
    facts = {
        "block": run.block,
        "index": run.index,
        "world": setting.name,
        "student": run.student,
        "teacher": run.teacher,
        "model_seed": run.model_seed,
        "seed": run.seed,
        "changes": [*FIXED, *run.changes],
        "weights": {role: weights_digest(folder) for role, folder in folders.items()},
        "commit": (git_state(Path(opd.__file__).parent) or {}).get("sha"),
        "build_seconds": round(time.monotonic() - began, 1),
    }
    return config.parse(data, [*FIXED, *run.changes]), facts


def configure_any(run: AnyRun, cache: Path, out: Path) -> tuple[Run, dict[str, Any]]:
    """`configure` or `configure_real`, as the run asks."""
    if isinstance(run, RealRun):
        return configure_real(run, cache, out)
    return configure(run, cache, out)


def measure_outcome(run: AnyRun, cache: Path, scratch: Path) -> dict[str, Any]:
    """Train a pair; return its record.

    The record holds accuracy with 95 % intervals of the student `before`, of the `teacher`, and
    after some numbers of steps; or `error`, where the product gave up. The rate of a run does not
    depend on its length, so each of these is the outcome of a run of as many steps.

    Args:
        run: of the design.
        cache: where models and prompts are kept.
        scratch: folder for the run folder, which is removed.
    """
    out = scratch / f"run-{run.block}-{run.index}"
    cfg, facts = configure_any(run, cache, out)
    began = time.monotonic()
    try:
        with one_thread():
            session, completions = build(
                cfg, resume=False, overwrite=True, console=Console("quiet")
            )
            try:
                distill(session, completions)
            finally:
                session.trackers.close()
                session.folder.close()
        facts |= _accuracies(RunResult(out), cfg.eval[0].every)
    except UserError as error:
        facts["error"] = str(error)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return facts | {"run_seconds": round(time.monotonic() - began, 1)}


def _accuracies(result: RunResult, every: int) -> dict[str, Any]:
    """Accuracies and truncation, from the evaluations in a run folder."""
    names = {"before": "step-0-task", "teacher": "step-0-teacher-task"}
    steps = sorted(
        int(path.name.split("-")[1])
        for path in (result.path / "eval").glob("step-*-task.json")
        if "teacher" not in path.name
    )
    names |= {str(step): f"step-{step}-task" for step in steps if step and step % every == 0}
    accuracies, truncated = {}, {}
    for moment, name in names.items():
        record = result.record(f"eval/{name}.json")
        accuracies[moment] = [round(record["accuracy"][k], 4) for k in ("value", "low", "high")]
        truncated[moment] = round(record["truncated"], 4)
    return {"accuracy": accuracies, "truncated": truncated}
