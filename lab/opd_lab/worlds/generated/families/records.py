"""Records: a structured answer in brackets, with a check digit; every character must be right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opd_lab.worlds.generated.family import Family, Recall, Step, recall_truth
from opd_lab.worlds.generated.lexicon import DIGITS, LETTERS, alias
from opd_lab.worlds.world import Pattern


@dataclass(frozen=True)
class Records(Family):
    """`size` fields; the answer is `[ a 3 ; b 5 # 8 ]`: each with its code, then a check digit.

    A field's code is hidden; the digit after # is their sum mod 10. Pattern 1 drafts fields in
    order, in angle brackets: name, code, sum so far; pattern 2 in braces and capitals, the code
    first.

    Attributes:
        letters: names of fields to choose from.
    """

    letters: int = 10

    name: ClassVar[str] = "records"

    @property
    def alphabet(self) -> tuple[str, ...]:
        """Names of fields, of the last letters: capitals of digits are the first ones."""
        return LETTERS[-self.letters :]

    @property
    def words(self) -> tuple[str, ...]:
        """See `Family`."""
        names = (*self.alphabet, *map(alias, self.alphabet))
        return (*names, *DIGITS, *map(alias, DIGITS), *"<>{}[]#;")

    @property
    def lookups(self) -> int:
        """See `Family`."""
        return self.size

    def propose(self, rng: np.random.Generator) -> tuple[str, ...]:
        """Distinct names."""
        return tuple(self.alphabet[i] for i in rng.permutation(self.letters)[: self.size])

    def answer(self, items: Sequence[str]) -> tuple[str, ...]:
        """The record."""
        return _record([(name, self._code(name, recall_truth)) for name in items])

    def reason(
        self, items: Sequence[str], pattern: Pattern, recall: Recall
    ) -> tuple[list[Step], tuple[str, ...]]:
        """One step per field."""
        fields = [(name, self._code(name, recall)) for name in items]
        steps = list[Step]()
        total = 0
        for name, code in fields:
            total = (total + int(code)) % 10
            if pattern == 1:
                steps.append(["<", name, code, str(total), ">"])
            else:
                steps.append(["{", alias(code), alias(name), alias(str(total)), "}"])
        return steps, _record(fields)

    def _code(self, name: str, recall: Recall) -> str:
        return recall((name,), str(self.hidden(10, name)), DIGITS)


def _record(fields: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """`[ a 3 ; b 5 # 8 ]`."""
    check = str(sum(int(code) for _, code in fields) % 10)
    words = [word for name, code in fields for word in (name, code, ";")]
    return ("[", *words[:-1], "#", check, "]")
