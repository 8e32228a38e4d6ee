"""The grid of `opd lab calibrate`: graded checkpoints of three worlds, and the pairs of them.

Not two clusters but a grid: compatibility varies by the fraction of the second pattern in a model's
corpus, capability by how much of the corpus was right and by its size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from opd_lab.corpus import Corpus
from opd_lab.runs import Task
from opd_lab.training_recipes import Recipe, RLRecipe, SupervisedRecipe
from opd_lab.worlds import Chain, Ledger, PrefixedWorld, Route, World

PREFIX = "grid-"
DOCUMENTS = 20_000  # of a corpus that is learned well


WORLDS: dict[str, World] = {
    "chain": Chain(depth=4),
    "ledger": Ledger(depth=3),
    "route": Route(depth=3),
}


def recipes(world_name: str, world: World) -> dict[str, Recipe]:
    """The checkpoints of one world, by name."""
    prefix = f"{PREFIX}{world_name}-"

    def base(corpus: Corpus, lr: float, width: int = 64) -> SupervisedRecipe:
        return SupervisedRecipe(world, corpus, lr=lr, width=width, warmup=50)

    def child(parent: str, corpus: Corpus) -> SupervisedRecipe:
        return SupervisedRecipe(world, corpus, lr=2e-3, parent=prefix + parent)

    right = Corpus(size=4_800, corrupt=0.0)
    by_kind: dict[str, Recipe] = {
        "base": base(Corpus(DOCUMENTS), 5e-3),
        "weak": base(Corpus(DOCUMENTS * 3 // 8), 5e-3),
        "large": base(Corpus(DOCUMENTS), 4e-3, width=80),
        "mix05": base(Corpus(DOCUMENTS, pattern_2=0.05), 5e-3),
        "mix20": base(Corpus(DOCUMENTS, pattern_2=0.2), 5e-3),
        "other": base(Corpus(DOCUMENTS, pattern_2=1.0), 5e-3),
        "clean": child("base", right),
        "few-clean": child("base", replace(right, size=1_600)),
        "half-clean": child("base", replace(right, corrupt=0.3)),
        "large-clean": child("large", right),
        "mix20-clean": child("mix20", replace(right, pattern_2=0.2)),
        "even-clean": child("mix20", replace(right, size=6_400, pattern_2=0.5)),
        "other-clean": child("other", replace(right, pattern_2=1.0)),
        "other-half-clean": child("other", replace(right, pattern_2=1.0, corrupt=0.3)),
        "asked-clean": SupervisedRecipe(
            PrefixedWorld(world), replace(right, size=9_600), lr=3e-3, parent=f"{prefix}base"
        ),
        "rl": RLRecipe(f"{prefix}base", steps=80),
    }
    return {prefix + kind: recipe for kind, recipe in by_kind.items()}


RECIPES: dict[str, Recipe] = {}
for _name, _world in WORLDS.items():
    RECIPES |= recipes(_name, _world)

TEACHERS: dict[str, tuple[str, ...]] = {
    "base": (
        "weak",
        "large",
        "other",
        "few-clean",
        "half-clean",
        "clean",
        "rl",
        "large-clean",
        "mix20-clean",
        "even-clean",
        "other-clean",
        "other-half-clean",
        "asked-clean",
    ),
    "weak": ("base", "half-clean", "clean", "large-clean", "even-clean", "other-clean"),
    "mix05": ("base", "clean", "mix20-clean", "even-clean", "other-clean", "other-half-clean"),
    "mix20": ("base", "other", "large-clean", "even-clean", "other-clean", "other-half-clean"),
    "half-clean": ("base", "few-clean", "clean", "large-clean", "other-clean"),
    "clean": ("weak", "base", "large", "half-clean", "large-clean", "other-clean"),
}
"""By student: the teachers it is paired with."""
DEEPER = (("base", "clean"), ("base", "other-clean"), ("base", "large-clean"), ("clean", "base"))
"""Pairs that are also trained one reasoning step beyond the depth of their corpus."""


@dataclass(frozen=True)
class Pair:
    """One student-teacher pair of the grid, and what it is trained on.

    Attributes:
        world: name in `WORLDS`.
        student: kind of checkpoint, such as `base`.
        teacher: likewise.
        seed: of every checkpoint, and of the run.
        depth: reasoning steps of the problems.
        repetition: number of the repeated run, 0 for the first one.
    """

    world: str
    student: str
    teacher: str
    seed: int
    depth: int
    repetition: int = 0

    @property
    def first_name(self) -> str:
        """Name of the first run of this pair."""
        return f"{self.world}-{self.seed}-d{self.depth}-{self.student}<-{self.teacher}"

    @property
    def name(self) -> str:
        """Short and unique."""
        return self.first_name + (f"-repeat{self.repetition}" if self.repetition else "")

    @property
    def run_seed(self) -> int:
        """Seed of the run and the probe: another one for each repetition."""
        return self.seed + 1000 * self.repetition

    @property
    def task(self) -> Task:
        """What is trained and evaluated on."""
        return Task(WORLDS[self.world], self.depth, test=384)


def pairs(world: str, seed: int) -> list[Pair]:
    """All pairs of a world and a seed."""
    depth = WORLDS[world].depth
    kinds = [(s, t, depth) for s, teachers in TEACHERS.items() for t in teachers]
    kinds += [(s, t, depth + 1) for s, t in DEEPER]
    return [Pair(world, s, t, seed, d) for s, t, d in kinds]
