"""What a run will take: parameters, memory, tokens, hours, disk, timed on the spot.

One whole step is taken with a learning rate of zero, so nothing is learned and everything is paid:
sampling, scoring, the update with its diagnostics, the optimizer's memory.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from opd.models.lm import LM

ADAM_STATES = 2
DISK_PROBE = 2**25  # bytes written to see how fast the disk is


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of one step, and what it wrote.

    Attributes:
        rollout: sampling.
        score: the teacher's scores.
        update: gradient, diagnostics, optimizer.
        tokens: completion tokens.
        share: of the real step's prompts that this one had.
    """

    rollout: float
    score: float
    update: float
    tokens: float
    share: float

    @property
    def seconds(self) -> float:
        """Of a whole step."""
        return (self.rollout + self.score + self.update) / self.share


@dataclass(frozen=True)
class Evaluations:
    """One held-out set of the plan: how often, how many completions, seconds each."""

    label: str
    times: int
    completions: int
    student_seconds: float
    teacher_seconds: float

    @property
    def seconds(self) -> float:
        """All of them; the teacher answers once."""
        return self.completions * (self.times * self.student_seconds + self.teacher_seconds)


@dataclass(frozen=True)
class Plan:
    """What the run will take. Bytes and seconds.

    Attributes:
        parameters: student, trained, teacher.
        memory: bytes by part.
        peak: bytes of the process, measured over one whole step.
        disk: most bytes of the run folder, which `opd train` asks for at its start.
        tokens: completion tokens of the whole run.
        steps: updates.
        step: seconds a step.
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

    def lengthened(self, factor: float) -> Plan:
        """The same run with completions `factor` times as long on average."""
        return replace(self, tokens=self.tokens * factor, step=self.step * factor)


def parameters(student: LM, teacher: LM | None) -> dict[str, int]:
    """How many numbers each model has, and how many of them are trained."""
    found = {
        "student": student.num_parameters(),
        "trained": sum(p.numel() for p in student.parameters().values()),
    }
    return found if teacher is None else found | {"teacher": teacher.num_parameters()}


def memory(student: LM, teacher: LM | None) -> dict[str, int]:
    """Bytes by part; what is left of the measured peak is activations, caches and libraries."""
    trained = sum(p.numel() * p.element_size() for p in student.parameters().values())
    found = {
        "student weights": _bytes(student),
        "gradients": trained,
        "optimizer": ADAM_STATES * trained,
    }
    return found if teacher is None else found | {"teacher weights": _bytes(teacher)}


def _bytes(lm: LM) -> int:
    return sum(p.numel() * p.element_size() for p in lm.model.parameters())


def peak() -> int:
    """Most bytes this process has held: on the accelerator if there is one, else in all."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # ru_maxrss is in KiB on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_speed(folder: Path) -> float:
    """Bytes a second that reach the disk where the run folder will be."""
    place = folder
    while not place.exists():
        place = place.parent
    with tempfile.NamedTemporaryFile(dir=place) as probe:
        began = time.monotonic()
        probe.write(b"\0" * DISK_PROBE)
        probe.flush()
        os.fsync(probe.fileno())
        return DISK_PROBE / max(time.monotonic() - began, 1e-6)


def timed(work: Callable[[], object]) -> float:
    """Seconds a call takes, until the device has done it."""
    began = time.monotonic()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - began
