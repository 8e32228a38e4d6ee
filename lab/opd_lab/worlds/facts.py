"""Hidden facts of a world: what post-training can add to a base model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd.rng import generator
from opd_lab.streams import WorldStream


@dataclass(frozen=True)
class Facts:
    """Hidden values of a world's symbols.

    Attributes:
        truth: value of each symbol.
        wrong: the one wrong value a corpus may give it; equal to the truth for easy symbols.
    """

    truth: dict[str, int]
    wrong: dict[str, int]

    @classmethod
    def sample(
        cls, symbols: tuple[str, ...], modulus: int, hard_fraction: float, seed: int
    ) -> Facts:
        """Sample values below `modulus`; a `hard_fraction` of the symbols get a wrong one too."""
        rng = generator(seed, WorldStream.FACTS)
        values = rng.integers(modulus, size=len(symbols)).tolist()
        hard = set(rng.permutation(len(symbols))[: round(hard_fraction * len(symbols))].tolist())
        offsets = rng.integers(1, modulus, size=len(symbols)).tolist()
        wrong = [(v + offsets[i] * (i in hard)) % modulus for i, v in enumerate(values)]
        return cls(
            truth=dict(zip(symbols, values, strict=True)),
            wrong=dict(zip(symbols, wrong, strict=True)),
        )

    def recall(self, symbol: str, rng: np.random.Generator, corrupt: float) -> int:
        """The symbol's value, or its wrong value with probability `corrupt`."""
        return (self.wrong if rng.random() < corrupt else self.truth)[symbol]
