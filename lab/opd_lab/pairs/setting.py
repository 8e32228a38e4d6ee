"""Settings of the study: a generated world with the architecture and the sizes of its models."""

from __future__ import annotations

from dataclasses import dataclass

from opd_lab.pairs.architectures import Architecture
from opd_lab.worlds.generated import GeneratedWorld, sample_world

RATE = 5e-3
RATES = {"gpt2": 4e-3}  # of supervised training from random weights
# Family, seed of the world, tokenization, architecture, width of students and of larger models.
TABLE = (
    ("rewriting", 1, "word", "llama", 64, 128),
    ("maze", 1, "character", "qwen3", 64, 128),
    ("addition", 1, "byte", "gpt2", 64, 128),
    ("strings", 1, "bpe", "gemma", 96, 192),
    ("graph", 1, "word", "gpt2", 64, 256),
    ("retrieval", 1, "character", "llama", 64, 128),
    ("records", 1, "byte", "qwen3", 128, 192),
    ("march", 1, "word", "qwen3", 64, 128),
    ("retrieval", 2, "bpe", "gemma", 64, 128),
    ("maze", 2, "byte", "qwen2", 64, 128),
)


@dataclass(frozen=True)
class Setting:
    """A world and how its models are built.

    Attributes:
        name: in records: family, tokenization and architecture.
        world: where problems and corpora come from.
        architecture: of students.
        large: of the larger teacher.
        rate: peak learning rate of training from random weights, at the student's width.
    """

    name: str
    world: GeneratedWorld
    architecture: Architecture
    large: Architecture
    rate: float


def _setting(
    family: str, seed: int, tokenization: str, kind: str, width: int, large: int
) -> Setting:
    return Setting(
        f"{family}-{tokenization}-{kind}",
        sample_world(family, seed, tokenization),
        Architecture(kind, width),
        Architecture(kind, large),
        RATES.get(kind, RATE),
    )


SETTINGS: tuple[Setting, ...] = tuple(_setting(*row) for row in TABLE)
