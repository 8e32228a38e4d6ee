"""How a checkpoint of the lab is made: by reading a corpus, or by the outcome reward."""

from __future__ import annotations

from dataclasses import dataclass, field

from opd_lab.corpus import Corpus
from opd_lab.worlds import World

Window = tuple[float, float]


@dataclass(frozen=True)
class Recipe:
    """A checkpoint made by supervised training on a corpus.

    Attributes:
        world: where its documents come from.
        corpus: what it reads; one pass over it, `batch` documents a step.
        lr: peak of the cosine.
        parent: recipe whose weights it starts from; None starts from random ones.
        width: hidden size of a model that starts from random weights.
        window: accuracy it must have on held-out problems; outside, it is not used.
    """

    world: World
    corpus: Corpus
    lr: float
    parent: str | None = None
    width: int = 64
    batch: int = 32
    warmup: int = 20
    window: Window = field(default=(0.0, 1.0), repr=False)


@dataclass(frozen=True)
class Improved:
    """A checkpoint made by the product's loop without a teacher, on the outcome reward alone.

    Attributes:
        parent: checkpoint it starts from; must be converged, or the loop collapses.
        steps: updates of 16 prompts x `n` rollouts.
        horizon: reasoning steps of its prompts; None: the world's own.
        window: as in `Recipe`.
    """

    parent: str
    steps: int = 120
    lr: float = 6e-4
    n: int = 8
    horizon: int | None = None
    window: Window = field(default=(0.0, 1.0), repr=False)
