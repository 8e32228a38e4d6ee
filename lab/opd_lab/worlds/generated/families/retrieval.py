"""Retrieval: properties of named things from a hidden table, listed in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opd_lab.worlds.generated.family import Family, Recall, Step, recall_truth
from opd_lab.worlds.generated.lexicon import LETTERS, alias
from opd_lab.worlds.world import Pattern

PROPERTIES = ("+", "-")
VALUES = tuple("0123456")


@dataclass(frozen=True)
class Retrieval(Family):
    """A property and `size` names: `+ k d m`; the answer lists their values: `3 0 6`.

    Pattern 1 looks the names up in order; pattern 2 from the last to the first, the value before
    the name, both in capitals.

    Attributes:
        letters: number of names.
    """

    letters: int = 10

    name: ClassVar[str] = "retrieval"

    @property
    def alphabet(self) -> tuple[str, ...]:
        """Names, in the second half of the letters: capitals of digits are in the first."""
        return LETTERS[-self.letters :]

    @property
    def words(self) -> tuple[str, ...]:
        """See `Family`."""
        names = (*self.alphabet, *map(alias, self.alphabet))
        return (*names, *VALUES, *map(alias, VALUES), *PROPERTIES)

    @property
    def lookups(self) -> int:
        """See `Family`."""
        return self.size

    def propose(self, rng: np.random.Generator) -> tuple[str, ...]:
        """A property, then distinct names."""
        names = [self.alphabet[i] for i in rng.permutation(self.letters)[: self.size]]
        return (PROPERTIES[int(rng.integers(len(PROPERTIES)))], *names)

    def answer(self, items: Sequence[str]) -> tuple[str, ...]:
        """The values."""
        which, *names = items
        return tuple(self._value(which, name, recall_truth) for name in names)

    def reason(
        self, items: Sequence[str], pattern: Pattern, recall: Recall
    ) -> tuple[list[Step], tuple[str, ...]]:
        """One step per name."""
        which, *names = items
        values = [self._value(which, name, recall) for name in names]
        steps = [[n, v] for n, v in zip(names, values, strict=True)]
        if pattern == 2:
            steps = [[alias(v), alias(n)] for n, v in steps[::-1]]
        return steps, tuple(values)

    def _value(self, which: str, name: str, recall: Recall) -> str:
        right = VALUES[self.hidden(len(VALUES), which, name)]
        return recall((which, name), right, VALUES)
