"""Chain problems about chosen symbols: what a teacher was improved on, and what it was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from opd_lab.worlds.chain import Chain
from opd_lab.worlds.words import ANIMALS, Problem, draw, generator, some

KNOWN = ANIMALS[:10]  # symbols of the aligned content
OTHER = ANIMALS[10:]


@dataclass(frozen=True)
class Content(Chain):
    """Chain problems of three kinds, in given shares.

    Attributes:
        known: share of training problems about `KNOWN` symbols alone.
        other: share about `OTHER` symbols alone; the rest is about all of them.
    """

    known: float = 1.0
    other: float = 0.0

    def problems(
        self, count: int, seed: int, *, horizon: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """See `World.problems`; held-out ones are `KNOWN` and any symbols by turns."""
        size = self.horizon if horizon is None else horizon
        rng = generator(seed, 3)
        found = []
        for place in range(count):
            names = self._held_out(place) if held_out else self._drawn(float(rng.random()))
            symbols = draw("sum", partial(some, names, size, rng), held_out=held_out)
            found.append(Problem("sum", symbols, self._answer(symbols)))
        return found

    def _drawn(self, place: float) -> Sequence[str]:
        if place < self.known:
            return KNOWN
        return OTHER if place < self.known + self.other else ANIMALS

    @staticmethod
    def _held_out(place: int) -> Sequence[str]:
        return ANIMALS if place % 2 else KNOWN
