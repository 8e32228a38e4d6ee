"""Ledger: book hidden values twice; whatever goes wrong in the draft, the check can repair.

`book in fox out owl` -> `then fox 3 so owl 8 check fox 3 owl 8 ANS 8`. The answer is the last
balance of the check, which starts again from nothing: an error in the draft costs nothing that the
check gets right. Pattern 1 books in the order of the prompt, in digits; pattern 2 books incomes
before expenses and checks backwards, in Roman numerals.
"""

from __future__ import annotations

from collections.abc import Sequence
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

SIGNS = {"in": 1, "out": -1}
Entry = tuple[str, int]  # a symbol and its sign


@dataclass(frozen=True)
class Ledger:
    """The ledger world: 20 symbols, values mod 10, each added or taken away.

    Attributes:
        horizon: entries of a problem; a completion books each twice.
        longest: largest horizon the tokenizer and models must hold; at most 20.
        hard_share: share of symbols that have a wrong value in corpora.
        zipf: exponent of the filler weights.
        seed: draws the hidden values.
    """

    horizon: int = 4
    longest: int = 10
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

        def propose() -> tuple[str, ...]:
            signs = [tuple(SIGNS)[bit] for bit in rng.integers(2, size=size)]
            pairs = zip(signs, some(ANIMALS, size, rng), strict=True)
            return tuple(word for pair in pairs for word in pair)

        drawn = [draw("book", propose, held_out=held_out) for _ in range(count)]
        return [Problem("book", items, self._answer(items)) for items in drawn]

    def off_task(self, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """See `World.off_task`: repeat three symbols."""
        return echoes(ANIMALS, count, seed, held_out=held_out)

    def solve(
        self, problem: Problem, pattern: Pattern, rng: np.random.Generator, *, corrupt: float = 0.0
    ) -> str:
        """See `World.solve`; draft and check recall each value independently."""
        if problem.task == "echo":
            return f"ANS {problem.answer}"
        draft = check = entries(problem.items)
        if pattern == 2:
            draft = sorted(draft, key=lambda entry: -entry[1])
            check = draft[::-1]
        fillers = Fillers(FILLERS, self.zipf).write(pattern, rng, len(draft))
        booked = self._book(draft, pattern, rng, corrupt)
        checked = self._book(check, pattern, rng, corrupt)
        written = [word for step in zip(fillers, *booked, strict=True) for word in step]
        written += ["check", *(word for step in zip(*checked, strict=True) for word in step)]
        alphabet = DIGITS if pattern == 1 else ROMAN
        return " ".join([*written, "ANS", DIGITS[alphabet.index(checked[1][-1])]])

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """See `World.tokenizer`."""
        words = ["book", "echo", "check", "ANS", *SIGNS, *ANIMALS, *DIGITS, *ROMAN, *FILLERS]
        return word_tokenizer(words, context=7 * self.longest + 16)

    def max_tokens(self, horizon: int | None = None) -> int:
        """See `World.max_tokens`."""
        return 5 * (self.horizon if horizon is None else horizon) + 4

    def _book(
        self, order: Sequence[Entry], pattern: Pattern, rng: np.random.Generator, corrupt: float
    ) -> tuple[list[str], list[str]]:
        """Symbols and running balances of one pass."""
        alphabet = DIGITS if pattern == 1 else ROMAN
        balance, balances = 0, []
        for symbol, sign in order:
            balance = (balance + sign * self.facts.recall(symbol, rng, corrupt)) % len(DIGITS)
            balances.append(alphabet[balance])
        return [symbol for symbol, _ in order], balances

    def _answer(self, items: tuple[str, ...]) -> str:
        total = sum(sign * self.facts.truth[symbol] for symbol, sign in entries(items))
        return DIGITS[total % len(DIGITS)]


def entries(items: tuple[str, ...]) -> list[Entry]:
    """`in fox out owl` as symbols with signs."""
    return [(symbol, SIGNS[sign]) for sign, symbol in zip(items[::2], items[1::2], strict=True)]
