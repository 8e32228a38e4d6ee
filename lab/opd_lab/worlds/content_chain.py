"""Chain problems about chosen symbols: what a teacher was improved on, and what it was not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opd_lab.streams import WorldStream
from opd_lab.worlds.chain import Chain
from opd_lab.worlds.vocabulary import ANIMALS

KNOWN = ANIMALS[:10]  # symbols of the aligned content
OTHER = ANIMALS[10:]


@dataclass(frozen=True)
class ContentChain(Chain):
    """Chain problems of three kinds, in given fractions.

    Attributes:
        known: fraction of training problems about `KNOWN` symbols alone.
        other: fraction about `OTHER` symbols alone; the rest is about all of them.
    """

    known: float = 1.0
    other: float = 0.0

    problem_stream: ClassVar[WorldStream] = WorldStream.CONTENT

    def symbol_pool(
        self,
        index: int,
        rng: np.random.Generator,
        *,
        held_out: bool,
    ) -> Sequence[str]:
        """See `SymbolWorld`; held-out problems are about `KNOWN` and any symbols in turn."""
        if held_out:
            return ANIMALS if index % 2 else KNOWN
        uniform = float(rng.random())
        if uniform < self.known:
            return KNOWN
        return OTHER if uniform < self.known + self.other else ANIMALS
