"""Addition: two numbers, digit by digit, with a carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opd_lab.worlds.generated.family import Family, Recall, Step
from opd_lab.worlds.generated.lexicon import CAPITALS, DIGITS
from opd_lab.worlds.world import Pattern


@dataclass(frozen=True)
class Addition(Family):
    """Two numbers of `size` digits in a base below ten; `4 5 + 3 2` -> `1 2 1` in base 6.

    Pattern 1 adds columns from the right, with digit and carry; pattern 2 first writes all sums of
    columns from the left, in capitals, then goes through them from the right.

    Attributes:
        base: number of digits, at most 10.
    """

    base: int = 6

    name: ClassVar[str] = "addition"

    @property
    def words(self) -> tuple[str, ...]:
        """See `Family`."""
        return (*DIGITS[: self.base], *CAPITALS[: 2 * self.base - 1], "+")

    @property
    def lookups(self) -> int:
        """See `Family`."""
        return self.size

    def propose(self, rng: np.random.Generator) -> tuple[str, ...]:
        """Two numbers, leading zeros included."""
        digits = [DIGITS[i] for i in rng.integers(self.base, size=2 * self.size)]
        return (*digits[: self.size], "+", *digits[self.size :])

    def answer(self, items: Sequence[str]) -> tuple[str, ...]:
        """The digits of the sum, one more than those of a number."""
        a, b = "".join(items).split("+")
        total = int(a, self.base) + int(b, self.base)
        return tuple(str(total // self.base**i % self.base) for i in range(self.size, -1, -1))

    def reason(
        self, items: Sequence[str], pattern: Pattern, recall: Recall
    ) -> tuple[list[Step], tuple[str, ...]]:
        """Columns; see the class."""
        columns = list(zip(items[: self.size], items[self.size + 1 :], strict=True))
        numbers = tuple(str(i) for i in range(2 * self.base - 1))
        sums = [int(recall(pair, str(int(pair[0]) + int(pair[1])), numbers)) for pair in columns]
        steps = [] if pattern == 1 else [[CAPITALS[s] for s in sums]]
        carry, digits = 0, list[str]()
        for (a, b), total in zip(columns[::-1], sums[::-1], strict=True):
            carry, digit = divmod(total + carry, self.base)
            digits.append(str(digit))
            if pattern == 1:
                steps.append([a, b, str(digit), str(carry)])
            else:
                steps.append([CAPITALS[total], str(digit), str(carry)])
        return steps, (str(carry), *digits[::-1])
