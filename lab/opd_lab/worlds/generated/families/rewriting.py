"""Rewriting: a word is rewritten as a whole, several times, by a hidden table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opd_lab.worlds.generated.family import Family, Recall, Step, recall_truth
from opd_lab.worlds.generated.lexicon import LETTERS, alias
from opd_lab.worlds.world import Pattern


@dataclass(frozen=True)
class Rewriting(Family):
    """Each letter becomes its right neighbour (in a ring), shifted by a hidden amount of its own.

    Pattern 1 writes each round from left to right, pattern 2 from right to left in capitals.

    Attributes:
        letters: size of the alphabet.
        rounds: how often the word is rewritten.
    """

    letters: int = 4
    rounds: int = 2

    name: ClassVar[str] = "rewriting"

    @property
    def alphabet(self) -> tuple[str, ...]:
        """The letters of a word."""
        return LETTERS[: self.letters]

    @property
    def words(self) -> tuple[str, ...]:
        """See `Family`."""
        return (*self.alphabet, *map(alias, self.alphabet))

    @property
    def lookups(self) -> int:
        """See `Family`."""
        return self.size * self.rounds

    def propose(self, rng: np.random.Generator) -> tuple[str, ...]:
        """A random word."""
        return tuple(self.alphabet[i] for i in rng.integers(self.letters, size=self.size))

    def answer(self, items: Sequence[str]) -> tuple[str, ...]:
        """The word after all rounds."""
        word = tuple(items)
        for _ in range(self.rounds):
            word = self._rewrite(word, recall_truth)
        return word

    def reason(
        self, items: Sequence[str], pattern: Pattern, recall: Recall
    ) -> tuple[list[Step], tuple[str, ...]]:
        """One step per round: the word."""
        word, steps = tuple(items), list[Step]()
        for _ in range(self.rounds):
            word = self._rewrite(word, recall)
            steps.append(list(word) if pattern == 1 else [alias(x) for x in word[::-1]])
        return steps, word

    def _rewrite(self, word: tuple[str, ...], recall: Recall) -> tuple[str, ...]:
        pairs = zip(word, word[1:] + word[:1], strict=True)
        return tuple(recall(pair, self._table(*pair), self.alphabet) for pair in pairs)

    def _table(self, left: str, right: str) -> str:
        shift = self.hidden(self.letters, left)
        return self.alphabet[(self.alphabet.index(right) + shift) % self.letters]
