"""March: a long walk around a ring; its chain of thought takes 64 to 128 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opd_lab.worlds.generated.family import Family, Recall, Step
from opd_lab.worlds.generated.lexicon import DIGITS, LETTERS, alias
from opd_lab.worlds.world import Pattern


@dataclass(frozen=True)
class March(Family):
    """`size` moves of hidden length around a ring of 10; the answer is the station reached.

    Pattern 1 walks from the first move to the last, in digits; pattern 2 from the last to the
    first, in capitals, the station before the move.

    Attributes:
        moves: how many moves there are.
    """

    moves: int = 8

    name: ClassVar[str] = "march"

    @property
    def alphabet(self) -> tuple[str, ...]:
        """The moves."""
        return LETTERS[: self.moves]

    @property
    def words(self) -> tuple[str, ...]:
        """See `Family`."""
        return (*self.alphabet, *DIGITS, *map(alias, DIGITS))

    @property
    def lookups(self) -> int:
        """See `Family`."""
        return self.size

    def propose(self, rng: np.random.Generator) -> tuple[str, ...]:
        """Random moves."""
        return tuple(self.alphabet[i] for i in rng.integers(self.moves, size=self.size))

    def answer(self, items: Sequence[str]) -> tuple[str, ...]:
        """The station reached."""
        return (str(sum(int(self._length(move)) for move in items) % 10),)

    def reason(
        self, items: Sequence[str], pattern: Pattern, recall: Recall
    ) -> tuple[list[Step], tuple[str, ...]]:
        """One step per move: the move and the station."""
        station, steps = 0, list[Step]()
        for move in items if pattern == 1 else items[::-1]:
            station = (station + int(recall((move,), self._length(move), DIGITS))) % 10
            steps.append([move, str(station)] if pattern == 1 else [alias(str(station)), move])
        return steps, (str(station),)

    def _length(self, move: str) -> str:
        return str(self.hidden(10, move))
