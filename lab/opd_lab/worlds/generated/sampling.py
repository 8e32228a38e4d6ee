"""Worlds as a function of (family, seed): the ranges that their parameters come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opd.rng import generator
from opd_lab.streams import WorldStream
from opd_lab.worlds.generated.families.addition import Addition
from opd_lab.worlds.generated.families.graph import Graph
from opd_lab.worlds.generated.families.march import March
from opd_lab.worlds.generated.families.maze import Maze
from opd_lab.worlds.generated.families.records import Records
from opd_lab.worlds.generated.families.retrieval import Retrieval
from opd_lab.worlds.generated.families.rewriting import Rewriting
from opd_lab.worlds.generated.families.strings import Strings
from opd_lab.worlds.generated.family import Family
from opd_lab.worlds.generated.tokenization import TOKENIZATIONS
from opd_lab.worlds.generated.world import GeneratedWorld

Make = Callable[[int, np.random.Generator], Family]

FAMILIES: dict[str, Make] = {
    "rewriting": lambda s, r: Rewriting(s, _in(r, 3, 4), letters=_in(r, 3, 4), rounds=2),
    "maze": lambda s, r: Maze(s, _in(r, 4, 6), walls=_in(r, 20, 40)),
    "addition": lambda s, r: Addition(s, _in(r, 2, 3), base=_in(r, 5, 6)),
    "strings": lambda s, r: Strings(s, _in(r, 3, 5), letters=_in(r, 8, 12)),
    "graph": lambda s, r: Graph(s, _in(r, 3, 5), letters=_in(r, 8, 12)),
    "retrieval": lambda s, r: Retrieval(s, _in(r, 3, 4), letters=_in(r, 8, 12)),
    "records": lambda s, r: Records(s, _in(r, 2, 3), letters=_in(r, 8, 12)),
    "march": lambda s, r: March(s, _in(r, 14, 18), moves=_in(r, 8, 12)),
}
CORRUPT = 0.6  # probability, in a base corpus, that a hard lookup takes its wrong value


def sample_world(family: str, seed: int, tokenization: str | None = None) -> GeneratedWorld:
    """The world of a family and a seed.

    Args:
        family: name in `FAMILIES`.
        seed: of parameters and hidden tables.
        tokenization: name in `TOKENIZATIONS`; None: sampled too.
    """
    rng = generator(seed, WorldStream.PARAMETERS, *family.encode())
    made = FAMILIES[family](seed, rng)
    drawn = list(TOKENIZATIONS)[int(rng.integers(len(TOKENIZATIONS)))]
    # The accuracy of a perfect imitation of a base corpus, whatever the number of lookups.
    accuracy = float(rng.uniform(0.15, 0.4))
    hard_fraction = (1 - accuracy ** (1 / made.lookups)) / CORRUPT
    fillers = 0 if family == "march" else int(rng.choice([0, 4, 8]))
    return GeneratedWorld(
        made,
        tokenization or drawn,
        hard_fraction=min(hard_fraction, 0.8),
        fillers=fillers,
        zipf=float(rng.uniform(1.0, 2.0)),
    )


def _in(rng: np.random.Generator, low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(rng.integers(low, high + 1))
