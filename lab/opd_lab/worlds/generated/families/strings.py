"""Strings: keep, reverse or count the letters of a hidden class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opd_lab.worlds.generated.family import Family, Recall, Step
from opd_lab.worlds.generated.lexicon import DIGITS, LETTERS
from opd_lab.worlds.world import Pattern

OPERATIONS = ("K", "R", "C")  # keep, reverse, count
MARKS: dict[Pattern, tuple[str, str]] = {1: ("n", "y"), 2: ("-", "+")}


@dataclass(frozen=True)
class Strings(Family):
    """`K` and letters: those of the hidden class; `R`: the same, backwards; `C`: how many.

    Pattern 1 marks the letters from left to right with y and n, pattern 2 from right to left with
    + and -, the mark first.

    Attributes:
        letters: size of the alphabet.
    """

    letters: int = 12

    name: ClassVar[str] = "strings"

    @property
    def alphabet(self) -> tuple[str, ...]:
        """The letters, without those that are marks."""
        return tuple(x for x in LETTERS if x not in "ny")[: self.letters]

    @property
    def words(self) -> tuple[str, ...]:
        """See `Family`."""
        return (*self.alphabet, *OPERATIONS, *MARKS[1], *MARKS[2], *DIGITS)

    @property
    def lookups(self) -> int:
        """See `Family`."""
        return self.size

    def propose(self, rng: np.random.Generator) -> tuple[str, ...]:
        """An operation, then letters."""
        operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        return (operation, *(self.alphabet[i] for i in rng.integers(self.letters, size=self.size)))

    def answer(self, items: Sequence[str]) -> tuple[str, ...]:
        """The letters, or their number."""
        return self._result(items[0], [x for x in items[1:] if self._in_class(x) == "1"])

    def reason(
        self, items: Sequence[str], pattern: Pattern, recall: Recall
    ) -> tuple[list[Step], tuple[str, ...]]:
        """One step per letter: its mark."""
        operation, *letters = items
        chosen = [int(recall((x,), self._in_class(x), ("0", "1"))) for x in letters]
        marked = [(x, MARKS[pattern][bit]) for x, bit in zip(letters, chosen, strict=True)]
        steps = [[x, m] for x, m in marked] if pattern == 1 else [[m, x] for x, m in marked[::-1]]
        kept = [x for x, bit in zip(letters, chosen, strict=True) if bit]
        return steps, self._result(operation, kept)

    def _in_class(self, letter: str) -> str:
        return str(self.hidden(2, letter))

    def _result(self, operation: str, kept: list[str]) -> tuple[str, ...]:
        if operation == "C" or not kept:
            return tuple(str(len(kept)))
        return tuple(kept if operation == "K" else kept[::-1])
