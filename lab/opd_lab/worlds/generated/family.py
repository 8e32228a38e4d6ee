"""What a family of generated worlds must say, and the lapses that all of them share."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from opd_lab.worlds.world import Pattern

Step = list[str]  # words of one reasoning step


class Recall(Protocol):
    """What a step remembers: the right value, or now and then a wrong one."""

    def __call__(self, key: Sequence[str], right: str, choices: Sequence[str]) -> str:
        """The value that is remembered.

        Args:
            key: what is looked up, such as two digits to be added.
            right: the right value.
            choices: all values it could be taken for.
        """
        ...


def recall_truth(key: Sequence[str], right: str, choices: Sequence[str]) -> str:
    """The `Recall` of somebody who never errs."""
    return right


@dataclass(frozen=True)
class Lapses:
    """Which lookups of a world are hard, and the one wrong value that a corpus gives each.

    Attributes:
        seed: of the world.
        hard_fraction: fraction of lookups that have a wrong value.
    """

    seed: int
    hard_fraction: float

    def is_hard(self, key: Sequence[str]) -> bool:
        """Whether a lookup has a wrong value."""
        return self._hash("hard", key) < self.hard_fraction * 2**32

    def wrong(self, key: Sequence[str], right: str, choices: Sequence[str]) -> str:
        """The wrong value of a hard lookup: always the same one."""
        others = [choice for choice in choices if choice != right]
        return others[self._hash("wrong", key) % len(others)] if others else right

    def _hash(self, purpose: str, key: Sequence[str]) -> int:
        return zlib.crc32("\0".join((purpose, str(self.seed), *key)).encode())

    def recall(self, rng: np.random.Generator, corrupt: float) -> Recall:
        """A `Recall` that gives hard lookups their wrong value with probability `corrupt`."""

        def remember(key: Sequence[str], right: str, choices: Sequence[str]) -> str:
            if rng.random() >= corrupt or not self.is_hard(key):
                return right
            return self.wrong(key, right, choices)

        return remember


@dataclass(frozen=True)
class Family(ABC):
    """Problems of one kind: how they are proposed, answered and reasoned about.

    Items are single characters, so that character-level worlds can write them without spaces.

    Attributes:
        seed: of hidden tables.
        size: items, moves or columns of a problem.
    """

    seed: int
    size: int

    name: ClassVar[str]

    @abstractmethod
    def propose(self, rng: np.random.Generator) -> tuple[str, ...]:
        """The items of a random problem."""

    @abstractmethod
    def answer(self, items: Sequence[str]) -> tuple[str, ...]:
        """The words of the right answer, computed without any chain of thought."""

    @abstractmethod
    def reason(
        self, items: Sequence[str], pattern: Pattern, recall: Recall
    ) -> tuple[list[Step], tuple[str, ...]]:
        """Reasoning steps in a thinking pattern, and the answer that they lead to."""

    @property
    @abstractmethod
    def words(self) -> tuple[str, ...]:
        """Every word that items, steps and answers are made of."""

    @property
    @abstractmethod
    def lookups(self) -> int:
        """Lookups of one chain of thought: each of them may be hard."""

    def hidden(self, count: int, *key: str) -> int:
        """A hidden value below `count`, a function of (seed, key)."""
        return zlib.crc32("\0".join((self.name, str(self.seed), *key)).encode()) // 7 % count
