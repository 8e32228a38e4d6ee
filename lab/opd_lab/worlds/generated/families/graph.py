"""Graph: follow labelled edges of a hidden graph; the answer is the node that is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opd_lab.worlds.generated.family import Family, Recall, Step, recall_truth
from opd_lab.worlds.generated.lexicon import LETTERS, alias
from opd_lab.worlds.world import Pattern

LABELS = ("0", "1", "2")


@dataclass(frozen=True)
class Graph(Family):
    """A start node and `size` labels of edges: `c 0 2 1`.

    Pattern 1 writes label and node; pattern 2 node, in capitals, before label.

    Attributes:
        letters: number of nodes.
    """

    letters: int = 10

    name: ClassVar[str] = "graph"

    @property
    def alphabet(self) -> tuple[str, ...]:
        """Names of nodes."""
        return LETTERS[: self.letters]

    @property
    def words(self) -> tuple[str, ...]:
        """See `Family`."""
        return (*self.alphabet, *map(alias, self.alphabet), *LABELS)

    @property
    def lookups(self) -> int:
        """See `Family`."""
        return self.size

    def propose(self, rng: np.random.Generator) -> tuple[str, ...]:
        """A random node, then labels."""
        labels = [LABELS[i] for i in rng.integers(len(LABELS), size=self.size)]
        return (self.alphabet[int(rng.integers(self.letters))], *labels)

    def answer(self, items: Sequence[str]) -> tuple[str, ...]:
        """The node that is reached."""
        node, *labels = items
        for label in labels:
            node = self._target(node, label, recall_truth)
        return (node,)

    def reason(
        self, items: Sequence[str], pattern: Pattern, recall: Recall
    ) -> tuple[list[Step], tuple[str, ...]]:
        """One step per edge."""
        node, *labels = items
        steps = list[Step]()
        for label in labels:
            node = self._target(node, label, recall)
            steps.append([label, node] if pattern == 1 else [alias(node), label])
        return steps, (node,)

    def _target(self, node: str, label: str, recall: Recall) -> str:
        right = self.alphabet[self.hidden(self.letters, node, label)]
        return recall((node, label), right, self.alphabet)
