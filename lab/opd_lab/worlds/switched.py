"""A world whose prompts carry a switch: with it chains of thought follow the other pattern."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerFast

from opd_lab.worlds.world import Pattern, Problem, World


@dataclass(frozen=True)
class SwitchedWorld:
    """A world in which every other problem begins with a word that chooses the pattern.

    Attributes:
        world: whose problems, chains of thought and tokenizer these are.
        switch: a word of its vocabulary; a prompt that begins with it is solved in pattern 2, any
            other in the pattern that is asked for.
    """

    world: World
    switch: str = "hmm"

    @property
    def depth(self) -> int:
        """See `World.depth`."""
        return self.world.depth

    def problems(
        self, count: int, seed: int, *, depth: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """See `World.problems`; a problem stays on its side of the split."""
        problems = self.world.problems(count, seed, depth=depth, held_out=held_out)
        return [
            replace(p, task=f"{self.switch} {p.task}") if i % 2 else p
            for i, p in enumerate(problems)
        ]

    def off_task(self, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """See `World.off_task`."""
        return self.world.off_task(count, seed, held_out=held_out)

    def solve(
        self, problem: Problem, pattern: Pattern, rng: np.random.Generator, *, corrupt: float = 0.0
    ) -> str:
        """See `World.solve`."""
        own = problem.task.removeprefix(f"{self.switch} ")
        if own != problem.task:
            problem, pattern = replace(problem, task=own), 2
        return self.world.solve(problem, pattern, rng, corrupt=corrupt)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """See `World.tokenizer`."""
        return self.world.tokenizer()

    def max_tokens(self, depth: int | None = None) -> int:
        """See `World.max_tokens`."""
        return self.world.max_tokens(depth)
