"""How a checkpoint of the lab is made: supervised on a corpus, or by reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass, field

from opd_lab.corpus import Corpus
from opd_lab.worlds import World

AccuracyRange = tuple[float, float]


@dataclass(frozen=True)
class SupervisedRecipe:
    """A checkpoint made by supervised training on a corpus.

    Attributes:
        world: where its documents come from.
        corpus: what it is trained on; one pass over it, `batch` documents per step.
        lr: peak of the cosine.
        parent: recipe whose weights it starts from; None: random ones.
        width: hidden size of a model that starts from random weights.
        accuracy_range: accuracy it must have on held-out problems; outside, it is not used.
    """

    world: World
    corpus: Corpus
    lr: float
    parent: str | None = None
    width: int = 64
    batch: int = 32
    warmup: int = 20
    accuracy_range: AccuracyRange = field(default=(0.0, 1.0), repr=False)


@dataclass(frozen=True)
class RLRecipe:
    """A checkpoint made by the product's loop without a teacher, on the outcome reward alone.

    Attributes:
        parent: checkpoint it starts from; must be converged, or training collapses.
        steps: updates of 16 prompts x `n` rollouts.
        lr: constant learning rate.
        n: rollouts per prompt.
        depth: reasoning steps of its prompts; None: the world's own.
        accuracy_range: as in `SupervisedRecipe`.
    """

    parent: str
    steps: int = 120
    lr: float = 6e-4
    n: int = 8
    depth: int | None = None
    accuracy_range: AccuracyRange = field(default=(0.0, 1.0), repr=False)


Recipe = SupervisedRecipe | RLRecipe
