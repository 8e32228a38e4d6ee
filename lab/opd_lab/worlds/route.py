"""Route: follow hidden moves around a ring of ten stations; a vocabulary above 512.

Each of 48 words is a move: go on by v, or mirror the ring and go on by v (station s becomes
v - s). `route bada kepo` asks for the station reached from 0. Pattern 1 walks forward, keeping the
station; pattern 2 composes the moves from the last to the first, keeping the whole map (20 of
them, as sign and Roman numeral). Moves do not commute, so the two are different skills.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from opd.rng import generator
from opd_lab.streams import WorldStream
from opd_lab.worlds.symbol_world import SymbolWorld, sample_words
from opd_lab.worlds.vocabulary import DIGITS, ROMAN, pseudowords
from opd_lab.worlds.world import Pattern

NUM_MOVES, NUM_FILLERS = 48, 432
_WORDS = pseudowords(NUM_MOVES + NUM_FILLERS)
MOVES, MOVE_FILLERS = _WORDS[:NUM_MOVES], _WORDS[NUM_MOVES:]
MAPS = {1: tuple("+" + r for r in ROMAN), -1: tuple("-" + r for r in ROMAN)}


@dataclass(frozen=True)
class Route(SymbolWorld):
    """The route world: 48 moves on a ring of 10, 432 fillers (the 16 commonest hold 84 %).

    `depth` is the number of moves of a problem. See `SymbolWorld` for the other attributes.

    Attributes:
        mirror_fraction: fraction of moves that mirror the ring.
    """

    depth: int = 4
    max_depth: int = 12
    mirror_fraction: float = 0.25

    task: ClassVar[str] = "route"
    keywords: ClassVar[tuple[str, ...]] = ("route", "echo", "ANS")
    symbols: ClassVar[tuple[str, ...]] = MOVES
    numerals: ClassVar[tuple[str, ...]] = (*DIGITS, *MAPS[1], *MAPS[-1])
    fillers: ClassVar[tuple[str, ...]] = MOVE_FILLERS

    @cached_property
    def mirrors(self) -> frozenset[str]:
        """Moves that mirror the ring; corpora are never wrong about this."""
        count = round(self.mirror_fraction * NUM_MOVES)
        return frozenset(sample_words(MOVES, count, generator(self.seed, WorldStream.MIRRORS)))

    def answer(self, items: tuple[str, ...]) -> str:
        """The station reached."""
        station = 0
        for move in items:
            station = (-station if move in self.mirrors else station) + self.facts.truth[move]
        return DIGITS[station % len(DIGITS)]

    def reason(
        self,
        items: tuple[str, ...],
        fillers: Sequence[str],
        pattern: Pattern,
        recall: Callable[[str], int],
    ) -> list[str]:
        """Filler, move and state per step: the station, or the map of the moves so far."""
        moves = items if pattern == 1 else items[::-1]
        sign, shift, words = 1, 0, list[str]()
        for filler, move in zip(fillers, moves, strict=True):
            distance = recall(move)
            mirror = -1 if move in self.mirrors else 1
            if pattern == 1:
                shift = (mirror * shift + distance) % len(DIGITS)
                state = DIGITS[shift]
            else:
                # (sign, shift) is s -> sign * s + shift; this move happens before all so far.
                sign, shift = sign * mirror, (shift + sign * distance) % len(DIGITS)
                state = MAPS[sign][shift]
            words += [filler, move, state]
        return [*words, "ANS", DIGITS[shift]]
