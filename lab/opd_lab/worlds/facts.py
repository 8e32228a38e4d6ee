"""Hidden facts of a world: what post-training can add to a base model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opd_lab.worlds.words import generator


@dataclass(frozen=True)
class Facts:
    """Hidden values of a world's symbols.

    Attributes:
        truth: value of each symbol.
        lie: the one wrong value a corpus may give it; equal to the truth for easy symbols.
    """

    truth: dict[str, int]
    lie: dict[str, int]

    @classmethod
    def draw(cls, symbols: tuple[str, ...], modulus: int, hard_share: float, seed: int) -> Facts:
        """Draw values below `modulus`; a `hard_share` of the symbols get a wrong one as well."""
        rng = generator(seed, 0)
        values = rng.integers(modulus, size=len(symbols)).tolist()
        hard = set(rng.permutation(len(symbols))[: round(hard_share * len(symbols))].tolist())
        offsets = rng.integers(1, modulus, size=len(symbols)).tolist()
        lies = [(v + offsets[i] * (i in hard)) % modulus for i, v in enumerate(values)]
        truth = dict(zip(symbols, values, strict=True))
        lie = dict(zip(symbols, lies, strict=True))
        return cls(truth, lie)

    def recall(self, symbol: str, rng: np.random.Generator, corrupt: float) -> int:
        """The symbol's value, or its wrong value with probability `corrupt`."""
        return (self.lie if rng.random() < corrupt else self.truth)[symbol]
