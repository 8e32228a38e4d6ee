"""The checkpoints of the lab, as declarations: what each was trained on, and how."""

from __future__ import annotations

from opd_lab import more_checkpoints
from opd_lab.calibration import grid
from opd_lab.corpus import Corpus
from opd_lab.training_recipes import Recipe, RLRecipe, SupervisedRecipe
from opd_lab.tuned import regimes
from opd_lab.worlds import Chain, ContentChain, Ledger, Route, World

CHAIN, ROUTE, LEDGER = Chain(), Route(), Ledger()
WRONG_FACTS, GOOD = (0.08, 0.30), (0.75, 1.0)

RECIPES: dict[str, Recipe] = {
    # Pattern 1 with wrong facts: greedy answers are wrong too, the truth is a minority.
    "chain-base": SupervisedRecipe(
        CHAIN, Corpus(size=32_000), lr=4e-3, warmup=50, accuracy_range=WRONG_FACTS
    ),
    # Same pattern, right facts: what post-training would make of the base.
    "chain-clean": SupervisedRecipe(
        CHAIN, Corpus(size=9_600, corrupt=0.0), lr=2e-3, parent="chain-base", accuracy_range=GOOD
    ),
    # The other pattern, equally capable: the teacher that should fail.
    "chain-other": SupervisedRecipe(
        CHAIN, Corpus(size=32_000, pattern_2=1.0), lr=4e-3, warmup=50, accuracy_range=WRONG_FACTS
    ),
    "chain-other-clean": SupervisedRecipe(
        CHAIN,
        Corpus(size=9_600, pattern_2=1.0, corrupt=0.0),
        lr=2e-3,
        parent="chain-other",
        accuracy_range=GOOD,
    ),
    # The same data in a larger model.
    "chain-large": SupervisedRecipe(
        CHAIN, Corpus(size=32_000), lr=4e-3, width=96, warmup=50, accuracy_range=WRONG_FACTS
    ),
    # Improved on half of the symbols alone: a teacher whose prompts are known. Every other of its
    # held-out problems is about any symbols, of which it knows little more than the base.
    "chain-content": SupervisedRecipe(
        ContentChain(),
        Corpus(size=9_600, corrupt=0.0),
        lr=2e-3,
        parent="chain-base",
        accuracy_range=(0.6, 0.9),
    ),
    # Ahead on their own states alone. Right after an opening that no other document has, and
    # otherwise as wrong as the base; right in the second pattern, and as wrong in the first.
    "chain-opening": SupervisedRecipe(
        CHAIN,
        Corpus(size=32_000, opened=0.7),
        lr=2e-3,
        parent="chain-large",
        accuracy_range=(0.6, 1.0),
    ),
    "chain-two-ways": SupervisedRecipe(
        CHAIN,
        Corpus(size=32_000, pattern_2=0.85, corrupt_2=0.0),
        lr=4e-3,
        width=96,
        warmup=50,
        accuracy_range=(0.6, 1.0),
    ),
    "chain-rl": RLRecipe("chain-base", accuracy_range=GOOD),
    "chain-large-rl": RLRecipe("chain-large", accuracy_range=GOOD),
    "chain-other-rl": RLRecipe("chain-other", accuracy_range=GOOD),
    # Graded: a little of the other pattern, half of the corpus, half of the improvement.
    "chain-mix03": SupervisedRecipe(
        CHAIN, Corpus(size=32_000, pattern_2=0.03), lr=4e-3, warmup=50, accuracy_range=WRONG_FACTS
    ),
    "chain-mix10": SupervisedRecipe(
        CHAIN, Corpus(size=32_000, pattern_2=0.1), lr=4e-3, warmup=50, accuracy_range=WRONG_FACTS
    ),
    "chain-half": SupervisedRecipe(
        CHAIN, Corpus(size=12_000), lr=4e-3, warmup=50, accuracy_range=(0.05, 0.30)
    ),
    "chain-half-rl": RLRecipe("chain-base", steps=25, accuracy_range=(0.3, 0.85)),
    # All depths in the corpus, improved at one of them: the teacher's depth.
    "chain-deep": SupervisedRecipe(
        CHAIN,
        Corpus(size=40_000, depths=(2, 3, 4, 5, 6, 7, 8)),
        lr=4e-3,
        warmup=50,
        accuracy_range=(0.15, 0.4),
    ),
    "chain-deep-rl": RLRecipe("chain-deep", steps=100, depth=4, accuracy_range=GOOD),
    # What a teacher of long chains knows: all of it, or no more than five steps.
    "chain-deep-able": SupervisedRecipe(
        CHAIN,
        Corpus(size=12_800, corrupt=0.0, depths=(2, 3, 4, 5, 6, 7, 8)),
        lr=2e-3,
        parent="chain-deep",
        accuracy_range=GOOD,
    ),
    "chain-deep-lost": SupervisedRecipe(
        CHAIN,
        Corpus(size=12_800, corrupt=0.0, depths=(2, 3, 4, 5)),
        lr=4e-3,
        parent="chain-deep",
        accuracy_range=GOOD,
    ),
    "route-base": SupervisedRecipe(
        ROUTE, Corpus(size=32_000), lr=4e-3, warmup=50, accuracy_range=(0.15, 0.4)
    ),
    "route-rl": RLRecipe("route-base", steps=160, accuracy_range=GOOD),
    # Errors can be repaired. Improved by supervised training on right documents: cheaper than RL.
    "ledger-base": SupervisedRecipe(
        LEDGER, Corpus(size=32_000), lr=4e-3, warmup=50, accuracy_range=(0.1, 0.4)
    ),
    "ledger-clean": SupervisedRecipe(
        LEDGER, Corpus(size=9_600, corrupt=0.0), lr=2e-3, parent="ledger-base", accuracy_range=GOOD
    ),
}

# Smaller and faster, for `opd lab run --quick` and the tests: fewer reasoning steps, teachers by
# supervised training on right documents.
QUICK = Chain(depth=4)
RECIPES |= {
    "quick-base": SupervisedRecipe(
        QUICK, Corpus(size=16_000), lr=5e-3, warmup=50, accuracy_range=(0.1, 0.4)
    ),
    "quick-large": SupervisedRecipe(
        QUICK, Corpus(size=16_000), lr=4e-3, width=80, warmup=50, accuracy_range=(0.1, 0.4)
    ),
    "quick-clean": SupervisedRecipe(
        QUICK, Corpus(size=4_800, corrupt=0.0), lr=2e-3, parent="quick-base", accuracy_range=GOOD
    ),
    "quick-large-clean": SupervisedRecipe(
        QUICK, Corpus(size=4_800, corrupt=0.0), lr=2e-3, parent="quick-large", accuracy_range=GOOD
    ),
    "quick-opening": SupervisedRecipe(
        QUICK,
        Corpus(size=16_000, opened=0.7),
        lr=2e-3,
        parent="quick-large",
        accuracy_range=(0.6, 1.0),
    ),
    "quick-two-ways": SupervisedRecipe(
        QUICK,
        Corpus(size=16_000, pattern_2=0.85, corrupt_2=0.0),
        lr=4e-3,
        width=80,
        warmup=50,
        accuracy_range=(0.6, 1.0),
    ),
    "quick-other-clean": SupervisedRecipe(
        QUICK,
        Corpus(size=16_000, pattern_2=1.0, corrupt=0.0),
        lr=5e-3,
        warmup=50,
        accuracy_range=GOOD,
    ),
}

RECIPES |= grid.RECIPES
RECIPES |= regimes.RECIPES
RECIPES |= more_checkpoints.RECIPES


def world_of(name: str) -> World:
    """The world whose problems a checkpoint solves."""
    recipe = RECIPES[name]
    return recipe.world if isinstance(recipe, SupervisedRecipe) else world_of(recipe.parent)
