"""Route: follow hidden moves around a ring of ten stations; a vocabulary above 512.

Each of 48 words is a move: go on by v, or mirror the ring and go on by v (station s becomes
v - s). `route bada kepo` asks for the station reached from 0. Pattern 1 walks forward, keeping the
station; pattern 2 composes the moves from the last to the first, keeping the whole map (20 of
them, written as sign and Roman numeral). Moves do not commute, so the two are different skills.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerFast

from opd_lab.worlds.facts import Facts
from opd_lab.worlds.words import (
    DIGITS,
    ROMAN,
    Fillers,
    Pattern,
    Problem,
    draw,
    echoes,
    generator,
    pseudowords,
    some,
    word_tokenizer,
)

NUM_MOVES, NUM_FILLERS = 48, 432
_WORDS = pseudowords(NUM_MOVES + NUM_FILLERS)
MOVES, MOVE_FILLERS = _WORDS[:NUM_MOVES], _WORDS[NUM_MOVES:]
MAPS = {1: tuple("+" + r for r in ROMAN), -1: tuple("-" + r for r in ROMAN)}


@dataclass(frozen=True)
class Route:
    """The route world: 48 moves on a ring of 10, 432 fillers.

    Attributes:
        horizon: moves of a problem.
        longest: largest horizon the tokenizer and models must hold.
        hard_share: share of moves whose distance is wrong in corpora.
        mirror_share: share of moves that mirror the ring.
        zipf: exponent of the filler weights; at 1.5 the 16 commonest hold 84 %.
        seed: draws the hidden moves.
    """

    horizon: int = 4
    longest: int = 12
    hard_share: float = 0.5
    mirror_share: float = 0.25
    zipf: float = 1.5
    seed: int = 0

    @cached_property
    def facts(self) -> Facts:
        """Hidden distance of each move."""
        return Facts.draw(MOVES, len(DIGITS), self.hard_share, self.seed)

    @cached_property
    def mirrors(self) -> frozenset[str]:
        """Moves that mirror the ring; corpora never lie about this."""
        count = round(self.mirror_share * NUM_MOVES)
        return frozenset(some(MOVES, count, generator(self.seed, 3)))

    def problems(
        self, count: int, seed: int, *, horizon: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """See `World.problems`."""
        size = self.horizon if horizon is None else horizon
        if not 1 <= size <= self.longest:
            raise ValueError(f"horizon {size} is outside 1..{self.longest}")
        rng = generator(seed, 0)
        drawn = [
            draw("route", lambda: some(MOVES, size, rng), held_out=held_out) for _ in range(count)
        ]
        return [Problem("route", moves, self._answer(moves)) for moves in drawn]

    def off_task(self, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """See `World.off_task`: repeat three moves."""
        return echoes(MOVES, count, seed, held_out=held_out)

    def solve(
        self, problem: Problem, pattern: Pattern, rng: np.random.Generator, *, corrupt: float = 0.0
    ) -> str:
        """See `World.solve`."""
        if problem.task == "echo":
            return f"ANS {problem.answer}"
        moves = problem.items if pattern == 1 else problem.items[::-1]
        fillers = Fillers(MOVE_FILLERS, self.zipf).write(pattern, rng, len(moves))
        sign, shift, written = 1, 0, []
        for filler, move in zip(fillers, moves, strict=True):
            distance = self.facts.recall(move, rng, corrupt)
            mirror = -1 if move in self.mirrors else 1
            if pattern == 1:
                shift = (mirror * shift + distance) % len(DIGITS)
                state = DIGITS[shift]
            else:
                # (sign, shift) is s -> sign * s + shift; this move happens before all seen so far.
                sign, shift = sign * mirror, (shift + sign * distance) % len(DIGITS)
                state = MAPS[sign][shift]
            written += [filler, move, state]
        return " ".join([*written, "ANS", DIGITS[shift]])

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """See `World.tokenizer`."""
        words = ["route", "echo", "ANS", *MOVES, *DIGITS, *MAPS[1], *MAPS[-1], *MOVE_FILLERS]
        return word_tokenizer(words, context=4 * self.longest + 16)

    def max_tokens(self, horizon: int | None = None) -> int:
        """See `World.max_tokens`."""
        return 3 * (self.horizon if horizon is None else horizon) + 3

    def _answer(self, moves: tuple[str, ...]) -> str:
        station = 0
        for move in moves:
            station = (-station if move in self.mirrors else station) + self.facts.truth[move]
        return DIGITS[station % len(DIGITS)]
