"""Maze: a walk through a small maze whose walls are hidden; a blocked move stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opd_lab.worlds.generated.family import Family, Recall, Step, recall_truth
from opd_lab.worlds.generated.lexicon import HEX
from opd_lab.worlds.world import Pattern

MOVES = {"N": (0, -1), "E": (1, 0), "S": (0, 1), "W": (-1, 0)}
COLUMNS, ROWS = tuple("pqrs"), tuple("wxyz")  # the notation of pattern 2
SIDE = 4


@dataclass(frozen=True)
class Maze(Family):
    """A start cell and `size` moves on a grid of 4 x 4; the answer is the cell at the end.

    Pattern 1 tells move and cell by number, pattern 2 column and row before the move.

    Attributes:
        walls: percentage of moves inside the grid that are blocked.
    """

    walls: int = 30

    name: ClassVar[str] = "maze"

    @property
    def words(self) -> tuple[str, ...]:
        """See `Family`."""
        return (*HEX, *MOVES, *COLUMNS, *ROWS)

    @property
    def lookups(self) -> int:
        """See `Family`."""
        return self.size

    def propose(self, rng: np.random.Generator) -> tuple[str, ...]:
        """A cell, then moves."""
        moves = [tuple(MOVES)[i] for i in rng.integers(len(MOVES), size=self.size)]
        return (HEX[int(rng.integers(len(HEX)))], *moves)

    def answer(self, items: Sequence[str]) -> tuple[str, ...]:
        """The last cell."""
        cell, *moves = items
        for move in moves:
            cell = self._next(cell, move, recall_truth)
        return (cell,)

    def reason(
        self, items: Sequence[str], pattern: Pattern, recall: Recall
    ) -> tuple[list[Step], tuple[str, ...]]:
        """One step per move: the move and where it leads."""
        cell, *moves = items
        steps = list[Step]()
        for move in moves:
            cell = self._next(cell, move, recall)
            row, column = divmod(HEX.index(cell), SIDE)
            steps.append([move, cell] if pattern == 1 else [COLUMNS[column], ROWS[row], move])
        return steps, (cell,)

    def _next(self, cell: str, move: str, recall: Recall) -> str:
        row, column = divmod(HEX.index(cell), SIDE)
        right, down = MOVES[move]
        beyond = row + down, column + right
        inside = all(0 <= x < SIDE for x in beyond)
        target = HEX[beyond[0] * SIDE + beyond[1]] if inside else cell
        if self.hidden(100, cell, move) < self.walls:
            target, other = cell, target
        else:
            other = cell
        return recall((cell, move), target, (target, other))
