"""The grid of `opd lab calibrate`: graded checkpoints of three worlds, and who learns from whom.

Not two clusters but a grid: compatibility varies by the share of the second pattern in what a model
has read, capability by how much of its reading was right and by how much of it there was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerFast

from opd_lab.corpus import Corpus
from opd_lab.recipe import Improved, Recipe
from opd_lab.runs import Task
from opd_lab.worlds import Chain, Ledger, Pattern, Problem, Route, World

PREFIX = "grid-"
READS = 20_000


@dataclass(frozen=True)
class Asked:
    """A world whose prompts begin with other words of its vocabulary.

    Attributes:
        world: whose problems, chains of thought and tokenizer these are.
        prefix: words put before each prompt.
    """

    world: World
    prefix: str = "echo ANS"

    @property
    def horizon(self) -> int:
        """See `World.horizon`."""
        return self.world.horizon

    def problems(
        self, count: int, seed: int, *, horizon: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """See `World.problems`; a problem stays on its side of the split."""
        drawn = self.world.problems(count, seed, horizon=horizon, held_out=held_out)
        return [replace(p, task=f"{self.prefix} {p.task}") for p in drawn]

    def off_task(self, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """See `World.off_task`."""
        return self.world.off_task(count, seed, held_out=held_out)

    def solve(
        self, problem: Problem, pattern: Pattern, rng: np.random.Generator, *, corrupt: float = 0.0
    ) -> str:
        """See `World.solve`."""
        own = replace(problem, task=problem.task.removeprefix(f"{self.prefix} "))
        return self.world.solve(own, pattern, rng, corrupt=corrupt)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """See `World.tokenizer`."""
        return self.world.tokenizer()

    def max_tokens(self, horizon: int | None = None) -> int:
        """See `World.max_tokens`."""
        return self.world.max_tokens(horizon)


WORLDS: dict[str, World] = {
    "chain": Chain(horizon=4),
    "ledger": Ledger(horizon=3),
    "route": Route(horizon=3),
}


def recipes(name: str, world: World) -> dict[str, Recipe | Improved]:
    """The checkpoints of one world."""
    own = f"{PREFIX}{name}-"

    def read(corpus: Corpus, lr: float, parent: str | None = None, width: int = 64) -> Recipe:
        """From random weights, or going on from a parent."""
        if parent is None:
            return Recipe(world, corpus, lr=lr, width=width, warmup=50)
        return Recipe(world, corpus, lr=lr, parent=own + parent)

    right = Corpus(size=4_800, corrupt=0.0)
    found: dict[str, Recipe | Improved] = {
        "base": read(Corpus(READS), 5e-3),
        "weak": read(Corpus(READS * 3 // 8), 5e-3),
        "large": read(Corpus(READS), 4e-3, width=80),
        "mix05": read(Corpus(READS, pattern_2=0.05), 5e-3),
        "mix20": read(Corpus(READS, pattern_2=0.2), 5e-3),
        "other": read(Corpus(READS, pattern_2=1.0), 5e-3),
        "clean": read(right, 2e-3, "base"),
        "few-clean": read(replace(right, size=1_600), 2e-3, "base"),
        "half-clean": read(replace(right, corrupt=0.3), 2e-3, "base"),
        "large-clean": read(right, 2e-3, "large"),
        "mix20-clean": read(replace(right, pattern_2=0.2), 2e-3, "mix20"),
        "even-clean": read(replace(right, size=6_400, pattern_2=0.5), 2e-3, "mix20"),
        "other-clean": read(replace(right, pattern_2=1.0), 2e-3, "other"),
        "other-half-clean": read(replace(right, pattern_2=1.0, corrupt=0.3), 2e-3, "other"),
        "asked-clean": Recipe(
            Asked(world), replace(right, size=9_600), lr=3e-3, parent=f"{own}base"
        ),
        "rl": Improved(f"{own}base", steps=80),
    }
    return {own + kind: recipe for kind, recipe in found.items()}


RECIPES: dict[str, Recipe | Improved] = {}
for _name, _world in WORLDS.items():
    RECIPES |= recipes(_name, _world)

TEACHERS: dict[str, tuple[str, ...]] = {
    "base": (
        "weak",
        "large",
        "other",
        "few-clean",
        "half-clean",
        "clean",
        "rl",
        "large-clean",
        "mix20-clean",
        "even-clean",
        "other-clean",
        "other-half-clean",
        "asked-clean",
    ),
    "weak": ("base", "half-clean", "clean", "large-clean", "even-clean", "other-clean"),
    "mix05": ("base", "clean", "mix20-clean", "even-clean", "other-clean", "other-half-clean"),
    "mix20": ("base", "other", "large-clean", "even-clean", "other-clean", "other-half-clean"),
    "half-clean": ("base", "few-clean", "clean", "large-clean", "other-clean"),
    "clean": ("weak", "base", "large", "half-clean", "large-clean", "other-clean"),
}
"""By student: the teachers it is paired with."""
LONG = (("base", "clean"), ("base", "other-clean"), ("base", "large-clean"), ("clean", "base"))
"""Pairs that are also trained one step beyond the horizon they have read about."""


@dataclass(frozen=True)
class Pair:
    """One student-teacher pair of the grid, and what it is trained on.

    Attributes:
        world: name in `WORLDS`.
        student: kind of checkpoint.
        teacher: likewise.
        seed: of every checkpoint, and of the run.
        horizon: reasoning steps of the problems.
        again: number of the re-run, 0 for the first.
    """

    world: str
    student: str
    teacher: str
    seed: int
    horizon: int
    again: int = 0

    @property
    def name(self) -> str:
        """Short and unique."""
        return f"{self.world}-{self.seed}-h{self.horizon}-{self.student}<-{self.teacher}" + (
            f"-again{self.again}" if self.again else ""
        )

    @property
    def task(self) -> Task:
        """What is trained and evaluated on."""
        return Task(WORLDS[self.world], self.horizon, test=384)


def pairs(world: str, seed: int) -> list[Pair]:
    """All pairs of a world and a seed."""
    horizon = WORLDS[world].horizon
    found = [(s, t, horizon) for s, teachers in TEACHERS.items() for t in teachers]
    found += [(s, t, horizon + 1) for s, t in LONG]
    return [Pair(world, s, t, seed, h) for s, t, h in found]
