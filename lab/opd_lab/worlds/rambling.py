"""A world whose chains of thought go on and on: models trained on them are cut off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from opd_lab.worlds.world import Pattern, Problem, World


@dataclass(frozen=True)
class RamblingWorld:
    """A world in which the steps of some chains of thought are repeated before the answer.

    Attributes:
        world: whose problems, chains of thought and tokenizer these are.
        fraction: of chains of thought that are repeated; such a one is longer than a run allows.
    """

    world: World
    fraction: float = 1.0

    @property
    def depth(self) -> int:
        """See `World.depth`."""
        return self.world.depth

    def problems(
        self, count: int, seed: int, *, depth: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """See `World.problems`."""
        return self.world.problems(count, seed, depth=depth, held_out=held_out)

    def off_task(self, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """See `World.off_task`."""
        return self.world.off_task(count, seed, held_out=held_out)

    def solve(
        self, problem: Problem, pattern: Pattern, rng: np.random.Generator, *, corrupt: float = 0.0
    ) -> str:
        """See `World.solve`."""
        text = self.world.solve(problem, pattern, rng, corrupt=corrupt)
        steps, mark, answer = text.partition("ANS")
        return (steps + text) if rng.random() < self.fraction and mark and answer else text

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """See `World.tokenizer`."""
        return self.world.tokenizer()

    def max_tokens(self, depth: int | None = None) -> int:
        """See `World.max_tokens`: of a chain of thought that is not repeated."""
        return self.world.max_tokens(depth)
