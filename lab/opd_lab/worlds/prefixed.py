"""A world under another prompt template."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerFast

from opd_lab.worlds.world import Pattern, Problem, World


@dataclass(frozen=True)
class PrefixedWorld:
    """A world whose prompts begin with other words of its vocabulary.

    Attributes:
        world: whose problems, chains of thought and tokenizer these are.
        prefix: words before each prompt.
    """

    world: World
    prefix: str = "echo ANS"

    @property
    def depth(self) -> int:
        """See `World.depth`."""
        return self.world.depth

    def problems(
        self, count: int, seed: int, *, depth: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """See `World.problems`; a problem stays on its side of the split."""
        problems = self.world.problems(count, seed, depth=depth, held_out=held_out)
        return [replace(p, task=f"{self.prefix} {p.task}") for p in problems]

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

    def max_tokens(self, depth: int | None = None) -> int:
        """See `World.max_tokens`."""
        return self.world.max_tokens(depth)
