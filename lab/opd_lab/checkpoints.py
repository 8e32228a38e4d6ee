"""The checkpoints of the lab, as declarations: what each has read, and how it was improved."""

from __future__ import annotations

from opd_lab.calibration import grid
from opd_lab.corpus import Corpus
from opd_lab.recipe import Improved, Recipe
from opd_lab.worlds import Chain, Content, Ledger, Route, World

__all__ = ["CHAIN", "RECIPES", "Improved", "Recipe", "world_of"]

CHAIN, ROUTE, LEDGER = Chain(), Route(), Ledger()
FACTS_WRONG, GOOD = (0.08, 0.30), (0.75, 1.0)

RECIPES: dict[str, Recipe | Improved] = {
    # Reads pattern 1 with wrong facts: greedy answers are wrong too, the truth is a minority.
    "chain-base": Recipe(CHAIN, Corpus(size=32_000), lr=4e-3, warmup=50, window=FACTS_WRONG),
    # Same pattern, right facts: what post-training would make of the base.
    "chain-clean": Recipe(
        CHAIN, Corpus(size=9_600, corrupt=0.0), lr=2e-3, parent="chain-base", window=GOOD
    ),
    # The other pattern, equally capable: the teacher that should fail.
    "chain-other": Recipe(
        CHAIN, Corpus(size=32_000, pattern_2=1.0), lr=4e-3, warmup=50, window=FACTS_WRONG
    ),
    "chain-other-clean": Recipe(
        CHAIN,
        Corpus(size=9_600, pattern_2=1.0, corrupt=0.0),
        lr=2e-3,
        parent="chain-other",
        window=GOOD,
    ),
    # The same data in a larger model.
    "chain-large": Recipe(
        CHAIN, Corpus(size=32_000), lr=4e-3, width=96, warmup=50, window=FACTS_WRONG
    ),
    # Improved on half of the symbols alone: a teacher whose prompts are known. Every other of its
    # held-out problems is about any symbols, of which it knows little more than the base.
    "chain-content": Recipe(
        Content(),
        Corpus(size=9_600, corrupt=0.0),
        lr=2e-3,
        parent="chain-base",
        window=(0.6, 0.9),
    ),
    "chain-rl": Improved("chain-base", window=GOOD),
    "chain-large-rl": Improved("chain-large", window=GOOD),
    "chain-other-rl": Improved("chain-other", window=GOOD),
    # Graded: a trace of the other pattern, half of the reading, half of the improvement.
    "chain-mix03": Recipe(
        CHAIN, Corpus(size=32_000, pattern_2=0.03), lr=4e-3, warmup=50, window=FACTS_WRONG
    ),
    "chain-mix10": Recipe(
        CHAIN, Corpus(size=32_000, pattern_2=0.1), lr=4e-3, warmup=50, window=FACTS_WRONG
    ),
    "chain-half": Recipe(CHAIN, Corpus(size=12_000), lr=4e-3, warmup=50, window=(0.05, 0.30)),
    "chain-half-rl": Improved("chain-base", steps=25, window=(0.3, 0.85)),
    # All horizons in the corpus, improved at one of them: the teacher's horizon.
    "chain-deep": Recipe(
        CHAIN,
        Corpus(size=40_000, horizons=(2, 3, 4, 5, 6, 7, 8)),
        lr=4e-3,
        warmup=50,
        window=(0.15, 0.4),
    ),
    "chain-deep-rl": Improved("chain-deep", steps=100, horizon=4, window=GOOD),
    "route-base": Recipe(ROUTE, Corpus(size=32_000), lr=4e-3, warmup=50, window=(0.15, 0.4)),
    "route-rl": Improved("route-base", steps=160, window=GOOD),
    # Errors can be repaired. Improved by supervised training on right documents: cheaper than RL.
    "ledger-base": Recipe(LEDGER, Corpus(size=32_000), lr=4e-3, warmup=50, window=(0.1, 0.4)),
    "ledger-clean": Recipe(
        LEDGER, Corpus(size=9_600, corrupt=0.0), lr=2e-3, parent="ledger-base", window=GOOD
    ),
}

# Smaller and faster, for `opd lab run --quick` and the tests: fewer reasoning steps, teachers by
# supervised training on right documents.
QUICK = Chain(horizon=4)
RECIPES |= {
    "quick-base": Recipe(QUICK, Corpus(size=16_000), lr=5e-3, warmup=50, window=(0.1, 0.4)),
    "quick-large": Recipe(
        QUICK, Corpus(size=16_000), lr=4e-3, width=80, warmup=50, window=(0.1, 0.4)
    ),
    "quick-clean": Recipe(
        QUICK, Corpus(size=4_800, corrupt=0.0), lr=2e-3, parent="quick-base", window=GOOD
    ),
    "quick-large-clean": Recipe(
        QUICK, Corpus(size=4_800, corrupt=0.0), lr=2e-3, parent="quick-large", window=GOOD
    ),
    "quick-other-clean": Recipe(
        QUICK,
        Corpus(size=16_000, pattern_2=1.0, corrupt=0.0),
        lr=5e-3,
        warmup=50,
        window=GOOD,
    ),
}

RECIPES |= grid.RECIPES


def world_of(name: str) -> World:
    """The world a checkpoint lives in."""
    recipe = RECIPES[name]
    return recipe.world if isinstance(recipe, Recipe) else world_of(recipe.parent)
