"""The checkpoints of E19 to E23: small ones, like those of `opd lab run --quick`."""

from __future__ import annotations

from opd_lab.corpus import Corpus
from opd_lab.training_recipes import Recipe, SupervisedRecipe
from opd_lab.worlds import Chain, PrefixedWorld, SwitchedWorld

PREFIX = "more-"
PLAIN = Chain(depth=4)
ASKED = PrefixedWorld(PLAIN, "well so")  # the prompts of a teacher's post-training
SWITCHED = SwitchedWorld(PLAIN)
WORDED = Chain(depth=4, zipf=0.0)  # the same chains of thought in other words
GOOD = (0.75, 1.0)

RECIPES: dict[str, Recipe] = {
    # Improved on prompts of its own template alone.
    "more-asked": SupervisedRecipe(
        ASKED, Corpus(4_800, corrupt=0.0), lr=2e-3, parent="quick-large", accuracy_range=GOOD
    ),
    # Large models that share no ancestor with the student: its method in other words, or another.
    "more-worded-large": SupervisedRecipe(
        WORDED, Corpus(16_000, corrupt=0.0), lr=4e-3, width=80, warmup=50, accuracy_range=GOOD
    ),
    "more-other-large": SupervisedRecipe(
        PLAIN,
        Corpus(16_000, pattern_2=1.0, corrupt=0.0),
        lr=4e-3,
        width=80,
        warmup=50,
        accuracy_range=GOOD,
    ),
    # Two patterns in one model, chosen by a word of the prompt.
    "more-switch-base": SupervisedRecipe(
        SWITCHED, Corpus(16_000), lr=5e-3, warmup=50, accuracy_range=(0.1, 0.4)
    ),
    "more-switch-large": SupervisedRecipe(
        SWITCHED, Corpus(16_000, corrupt=0.0), lr=4e-3, width=80, warmup=50, accuracy_range=GOOD
    ),
}
