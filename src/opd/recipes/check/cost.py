"""The cost of a run: parameters, memory, tokens, hours and disk, from steps timed on this machine.

A whole step is run at a learning rate of zero, so that nothing is learned but everything is
measured: sampling, scoring, the update with its diagnostics, the optimizer's memory.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from opd.models.lm import LM
from opd.run.devices import peak_device_bytes
from opd.training.int8_moments import state_bytes

Result = TypeVar("Result")

ADAM_STATES = 2
DISK_PROBE = 2**25  # bytes written to see how fast the disk is


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of one step, and the tokens it generated.

    Attributes:
        rollout: sampling.
        score: the teacher's scores.
        update: gradient, diagnostics, optimizer.
        tokens: completion tokens.
        fraction: of a configured step's prompts that this one had.
    """

    rollout: float
    score: float
    update: float
    tokens: float
    fraction: float

    @property
    def seconds(self) -> float:
        """Of a whole configured step."""
        return (self.rollout + self.score + self.update) / self.fraction


@dataclass(frozen=True)
class EvaluationCost:
    """One held-out set: number of evaluations, their completions, seconds of each."""

    label: str
    times: int
    completions: int
    student_seconds: float
    teacher_seconds: float

    @property
    def seconds(self) -> float:
        """Of all evaluations; the teacher is evaluated once."""
        return self.completions * (self.times * self.student_seconds + self.teacher_seconds)


@dataclass(frozen=True)
class RunCost:
    """Cost of the whole run, in bytes and seconds.

    Attributes:
        parameters: of student, trained weights and teacher.
        memory: bytes by part.
        peak: bytes of the process, measured over one whole step.
        disk: maximum bytes of the run folder, which `opd train` requires at its start.
        tokens: completion tokens of the whole run.
        steps: updates.
        step: seconds per step.
        evaluation: seconds of all evaluations.
        saving: seconds of all checkpoints.
        teacher_calls: rollouts the teacher scores.
    """

    parameters: dict[str, int]
    memory: dict[str, int]
    peak: int
    disk: int
    tokens: float
    steps: int
    step: float
    evaluation: float
    saving: float
    teacher_calls: int

    @property
    def seconds(self) -> float:
        """The whole run, models already loaded."""
        return self.steps * self.step + self.evaluation + self.saving

    def with_lengths(self, factor: float) -> RunCost:
        """The same run with completions `factor` times as long on average."""
        return replace(self, tokens=self.tokens * factor, step=self.step * factor)


def count_parameters(student: LM, teacher: LM | None) -> dict[str, int]:
    """Parameters of each model, and how many of the student's are trained."""
    counts = {
        "student": student.num_parameters(),
        "trained": sum(p.numel() for p in student.parameters().values()),
    }
    return counts if teacher is None else counts | {"teacher": teacher.num_parameters()}


def estimate_memory(student: LM, teacher: LM | None, *, int8: bool = False) -> dict[str, int]:
    """Bytes by part on the student's device, beside activations and caches.

    Args:
        student: as the run trains it, with its master weights.
        teacher: in this process, or None.
        int8: whether the optimizer's moments have 8 bits (optim.moments).
    """
    weights = list(student.weights().values())
    trained = sum(w.numel() * w.element_size() for w in weights)  # gradients have their dtype
    moments = sum(state_bytes(w.numel()) for w in weights) if int8 else ADAM_STATES * trained
    parts = {"student weights": _bytes(student), "gradients": trained}
    if all(w.device == student.device for w in weights):
        parts |= {"master weights": trained} if student.masters else {}
        parts["optimizer moments"] = moments
    return parts if teacher is None else parts | {"teacher weights": _bytes(teacher)}


def _bytes(lm: LM) -> int:
    return sum(p.numel() * p.element_size() for p in lm.model.parameters())


def peak_memory() -> int:
    """Peak bytes of this process: on the accelerator if there is one, else resident."""
    if (on_device := peak_device_bytes()) is not None:
        return on_device
    # ru_maxrss is in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_speed(folder: Path) -> float:
    """Bytes per second that reach the disk where the run folder will be."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    with tempfile.NamedTemporaryFile(dir=existing) as probe:
        started = time.monotonic()
        probe.write(b"\0" * DISK_PROBE)
        probe.flush()
        os.fsync(probe.fileno())
        return DISK_PROBE / max(time.monotonic() - started, 1e-6)


def time_call(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of a call and its seconds, until the device has finished."""
    started = time.monotonic()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.monotonic() - started
