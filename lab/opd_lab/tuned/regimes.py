"""Who learns from whom, with which prompts, for how long; and the rates every arm is tried at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from opd_lab.corpus import Corpus
from opd_lab.training_recipes import Recipe, SupervisedRecipe
from opd_lab.worlds import Chain

Arm = Literal["OPD", "SFT", "SFT, then OPD", "cold start by hand", "recipe: auto", "teacher"]
ARMS: tuple[Arm, ...] = ("OPD", "SFT", "SFT, then OPD", "cold start by hand", "recipe: auto")
TEACHER: Arm = "teacher"  # its accuracy, once a regime and seed
# Three settings each, a factor of two apart. With 8e-3 supervised training was behind on the first
# seed that was tried, and forgot no less.
OPD_RATES = (1e-3, 2e-3, 4e-3)
SFT_RATES = (1e-3, 2e-3, 4e-3)
SEEDS = (11, 12, 13)
RESPONSES = 64  # per step, in every arm: 16 prompts x 4 on-policy, 64 examples off-policy

SHORT, LONG = 3, 6  # reasoning steps of a problem
WORLD = Chain(depth=SHORT)
PREFIX = "tuned-"
_DEPTHS = (SHORT, LONG)
BASE, LARGE_CLEAN, OTHER_CLEAN = (PREFIX + name for name in ("base", "large-clean", "other-clean"))
_LARGE = f"{PREFIX}large"

RECIPES: dict[str, Recipe] = {
    BASE: SupervisedRecipe(WORLD, Corpus(16_000, depths=_DEPTHS), lr=5e-3, warmup=50),
    _LARGE: SupervisedRecipe(WORLD, Corpus(16_000, depths=_DEPTHS), lr=4e-3, width=80, warmup=50),
    LARGE_CLEAN: SupervisedRecipe(
        WORLD, Corpus(4_800, corrupt=0.0, depths=_DEPTHS), lr=2e-3, parent=_LARGE
    ),
    OTHER_CLEAN: SupervisedRecipe(
        WORLD,
        Corpus(16_000, pattern_2=1.0, corrupt=0.0, depths=_DEPTHS),
        lr=5e-3,
        warmup=50,
    ),
}


@dataclass(frozen=True)
class Regime:
    """One situation in which the arms are compared.

    Attributes:
        title: what is special about it.
        teacher: checkpoint; the student is always the base.
        steps: of plain on-policy training; its tokens and its seconds are the budgets.
        depth: reasoning steps of the training problems.
        prompts: number of training problems.
        answers: teacher answers that supervised training may use, one per problem; None: a fresh
            one for every example.
    """

    title: str
    teacher: str
    steps: int = 32
    depth: int = SHORT
    prompts: int = 8_000
    answers: int | None = None

    @property
    def other_depth(self) -> int:
        """The depth that nothing is trained on: the held-out skill."""
        return LONG if self.depth == SHORT else SHORT


REGIMES: dict[str, Regime] = {
    "same": Regime("teacher of the same pattern, as many answers as wanted", LARGE_CLEAN),
    "other": Regime("teacher of another pattern", OTHER_CLEAN, steps=96),
    "few": Regime("64 prompts, one teacher answer each", LARGE_CLEAN, prompts=64, answers=64),
    "long": Regime("answers twice as long", LARGE_CLEAN, depth=LONG),
}
