"""What a checkpoint holds and how a run comes back from it.

Trainable weights and optimizer state, bit for bit, and where metrics.jsonl ended. No random state:
every random number is a function of (seed, step, index).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opd.models.fsdp import gather_tensors, shard_like
from opd.models.lm import LM
from opd.models.master_weights import copy_masters_to_model
from opd.run.checkpoint import find_newest_checkpoint, save_tensors
from opd.run.folder import RunFolder
from opd.run.optimizer import (
    flatten_optimizer,
    group_settings,
    restore_group_settings,
    restore_optimizer,
)
from opd.training.learner import Learner


def write_checkpoint(
    run: RunFolder,
    learner: Learner,
    step: int,
    *,
    keep: int,
    folder: Path | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write step-N, all or nothing, and prune older ones.

    A sharded student is assembled for it, so that any number of processes can go on from it.

    Args:
        run: whose log lengths are part of the state.
        learner: student and optimizer.
        step: updates made.
        keep: how many stay.
        folder: where; None for the run's checkpoints/. A phase before the first step has its own.
        facts: JSON values, "facts" of the state that `restore_phase` gives back.
    """
    weights = learner.student.weights()
    tensors: dict[str, dict[str, Tensor]] = {
        "student": {name: p.detach() for name, p in weights.items()},
        "optimizer": flatten_optimizer(learner.optimizer, {p: n for n, p in weights.items()}),
    }
    if learner.own_teacher is not None and learner.own_teacher.average:
        tensors["teacher"] = learner.own_teacher.average
    if learner.student.sharded is not None:
        tensors = {
            group: gather_tensors(named, keep=run.writes) for group, named in tensors.items()
        }
    if not run.writes:
        return
    state: dict[str, Any] = {
        "step": step,
        "logs": run.sync_logs(),
        "log_digests": run.log_digests(),
        "groups": group_settings(learner.optimizer),
        "facts": dict(facts or {}),
    }
    save_tensors(folder or run.checkpoints, step, tensors, state, keep=keep, ops=run.ops)


def describe_newest(run: RunFolder) -> str:
    """Where the newest valid checkpoint is, for messages."""
    newest = find_newest_checkpoint(run.checkpoints)
    return "none yet" if newest is None else str(newest.path)


def restore(run: RunFolder, learner: Learner) -> int:
    """Put the newest valid checkpoint back and cut metrics.jsonl to it.

    Returns:
        The step it was made at; 0 for a fresh run.
    """
    return restore_phase(run, learner, run.checkpoints)[0]


@torch.no_grad()
def load_student(learner: Learner, folder: Path) -> int | None:
    """Put the weights of a folder's newest valid checkpoint in place, nothing else.

    Returns:
        The step it was made at; None where there is no checkpoint.
    """
    newest = find_newest_checkpoint(folder)
    if newest is None:
        return None
    tensors, _ = newest.load()
    load_weights(learner.student, tensors["student"])
    return newest.step


@torch.no_grad()
def load_weights(student: LM, tensors: Mapping[str, Tensor]) -> None:
    """Give a student the weights of a checkpoint, masters included."""
    for name, weight in student.weights().items():
        weight.copy_(shard_like(tensors[name], weight))
    copy_masters_to_model(student)


@torch.no_grad()
def restore_phase(
    run: RunFolder, learner: Learner, folder: Path, *, cut: bool = True
) -> tuple[int, dict[str, Any]]:
    """As `restore`, from a phase's own folder.

    Args:
        run: whose logs are cut to where the checkpoint was made, if `cut`.
        learner: gets weights and optimizer state.
        folder: of the phase.
        cut: False: the caller cuts the logs to the state's "logs".

    Returns:
        The step it was made at and its state; 0 and nothing where there is no checkpoint.
    """
    newest = find_newest_checkpoint(folder)
    if newest is None:
        if cut:
            run.truncate_logs({})
        return 0, {}
    tensors, state = newest.load()
    weights = learner.student.weights()
    load_weights(learner.student, tensors["student"])
    restore_optimizer(learner.optimizer, {p: n for n, p in weights.items()}, tensors["optimizer"])
    restore_group_settings(learner.optimizer, state["groups"])
    if learner.own_teacher is not None and "teacher" in tensors:
        learner.own_teacher.restore(tensors["teacher"])
    if cut:
        run.truncate_logs(state["logs"], state.get("log_digests"))
    return newest.step, state
