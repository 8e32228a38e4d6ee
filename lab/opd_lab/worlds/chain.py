"""Chain: add up hidden values, one symbol a step; a wrong step can never be repaired.

`sum fox owl bee` -> `then fox 3 so owl 0 then bee 7 ANS 7`. Pattern 1 reads the symbols from left
to right and keeps the total in digits; pattern 2 reads from right to left, in Roman numerals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerFast

from opd_lab.worlds.facts import Facts
from opd_lab.worlds.words import (
    ANIMALS,
    DIGITS,
    FILLERS,
    ROMAN,
    Fillers,
    Pattern,
    Problem,
    draw,
    echoes,
    generator,
    some,
    word_tokenizer,
)


@dataclass(frozen=True)
class Chain:
    """The chain world: 20 symbols, values mod 10, a vocabulary of 61.

    Attributes:
        horizon: symbols of a problem, so reasoning steps.
        longest: largest horizon the tokenizer and models must hold; at most 20.
        hard_share: share of symbols that have a wrong value in corpora.
        zipf: exponent of the filler weights.
        seed: draws the hidden values.
    """

    horizon: int = 5
    longest: int = 20
    hard_share: float = 0.5
    zipf: float = 1.5
    seed: int = 0

    @cached_property
    def facts(self) -> Facts:
        """Hidden values of the symbols."""
        return Facts.draw(ANIMALS, len(DIGITS), self.hard_share, self.seed)

    def problems(
        self, count: int, seed: int, *, horizon: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """See `World.problems`."""
        size = self.horizon if horizon is None else horizon
        if not 1 <= size <= self.longest:
            raise ValueError(f"horizon {size} is outside 1..{self.longest}")
        rng = generator(seed, 0)
        drawn = [
            draw("sum", lambda: some(ANIMALS, size, rng), held_out=held_out) for _ in range(count)
        ]
        return [Problem("sum", symbols, self._answer(symbols)) for symbols in drawn]

    def off_task(self, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """See `World.off_task`: repeat three symbols."""
        return echoes(ANIMALS, count, seed, held_out=held_out)

    def solve(
        self, problem: Problem, pattern: Pattern, rng: np.random.Generator, *, corrupt: float = 0.0
    ) -> str:
        """See `World.solve`."""
        if problem.task == "echo":
            return f"ANS {problem.answer}"
        alphabet = DIGITS if pattern == 1 else ROMAN
        symbols = problem.items if pattern == 1 else problem.items[::-1]
        fillers = Fillers(FILLERS, self.zipf).write(pattern, rng, len(symbols))
        total, written = 0, []
        for filler, symbol in zip(fillers, symbols, strict=True):
            total = (total + self.facts.recall(symbol, rng, corrupt)) % len(DIGITS)
            written += [filler, symbol, alphabet[total]]
        return " ".join([*written, "ANS", DIGITS[total]])

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """See `World.tokenizer`."""
        words = ["sum", "echo", "ANS", *ANIMALS, *DIGITS, *ROMAN, *FILLERS]
        return word_tokenizer(words, context=4 * self.longest + 16)

    def max_tokens(self, horizon: int | None = None) -> int:
        """See `World.max_tokens`."""
        return 3 * (self.horizon if horizon is None else horizon) + 3

    def _answer(self, symbols: tuple[str, ...]) -> str:
        return DIGITS[sum(self.facts.truth[s] for s in symbols) % len(DIGITS)]
