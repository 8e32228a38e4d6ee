"""Random streams of the lab, apart from those of `opd.rng.Stream`."""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class LabStream(IntEnum):
    """Purposes that draw random numbers in the lab."""

    PROBE = 100  # rollouts of a measurement: prompt, sample
    TEACHER = 101  # tokens of the teacher's completions for supervised training: prompt, sample
