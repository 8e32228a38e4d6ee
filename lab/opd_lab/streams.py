"""Random streams of the lab, apart from those of `opd.rng.Stream`."""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class LabStream(IntEnum):
    """Purposes that draw random numbers in the lab."""

    PROBE = 100  # rollouts of a measurement: prompt, sample
    TEACHER = 101  # tokens of the teacher's completions for supervised training: prompt, sample


class WorldStream(IntEnum):
    """Purposes that draw the data of a world, not a run.

    FACTS and PROBLEMS share a number, and so do CONTENT and MIRRORS, which belong to different
    worlds: other numbers would be other documents, so other weights in every checkpoint and other
    prompts in the demo.
    """

    PROBLEMS = 0  # problems of a world's own skill; the seed is the prompt set's
    FACTS = 0  # hidden values; the seed is the world's
    OFF_TASK = 1  # problems of the off-task skill
    CORPUS = 2  # documents of a corpus
    CONTENT = 3  # problems of `ContentChain`
    MIRRORS = 3  # moves of `Route` that mirror the ring; the seed is the world's
    PARAMETERS = 4  # parameters of a generated world; the seed is the world's
    DESIGN = 5  # pairs and settings of a study: run
    NOISE = 6  # of the weights of a noisy model; the seed is the model's
    RESAMPLING = 7  # trainings of a study, for an interval
