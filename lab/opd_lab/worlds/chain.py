"""Chain: add up hidden values, one symbol per step; a wrong step can never be repaired.

`sum fox owl bee` -> `then fox 3 so owl 0 then bee 7 ANS 7`. Pattern 1 takes the symbols from left
to right and keeps the total in digits; pattern 2 from right to left, in Roman numerals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from opd_lab.worlds.symbol_world import SymbolWorld
from opd_lab.worlds.vocabulary import DIGITS, ROMAN
from opd_lab.worlds.world import Pattern


@dataclass(frozen=True)
class Chain(SymbolWorld):
    """The chain world: 20 symbols, values mod 10, a vocabulary of 61.

    `depth` is the number of symbols of a problem; at most 20. See `SymbolWorld`.
    """

    depth: int = 5
    max_depth: int = 20

    task: ClassVar[str] = "sum"
    keywords: ClassVar[tuple[str, ...]] = ("sum", "echo", "ANS")

    def answer(self, items: tuple[str, ...]) -> str:
        """The sum of the values."""
        return DIGITS[sum(self.facts.truth[s] for s in items) % len(DIGITS)]

    def reason(
        self,
        items: tuple[str, ...],
        fillers: Sequence[str],
        pattern: Pattern,
        recall: Callable[[str], int],
    ) -> list[str]:
        """Filler, symbol and running total per step."""
        alphabet, symbols = (DIGITS, items) if pattern == 1 else (ROMAN, items[::-1])
        total, words = 0, list[str]()
        for filler, symbol in zip(fillers, symbols, strict=True):
            total = (total + recall(symbol)) % len(DIGITS)
            words += [filler, symbol, alphabet[total]]
        return [*words, "ANS", DIGITS[total]]
