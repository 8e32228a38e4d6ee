"""Ledger: book hidden values twice; whatever goes wrong in the draft, the check can repair.

`book in fox out owl` -> `then fox 3 so owl 8 check fox 3 owl 8 ANS 8`. The answer is the last
balance of the check, which starts again from nothing: an error in the draft costs nothing that the
check gets right. Pattern 1 books in the order of the prompt, in digits; pattern 2 books incomes
before expenses and checks backwards, in Roman numerals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opd_lab.worlds.symbol_world import SymbolWorld, sample_words
from opd_lab.worlds.vocabulary import DIGITS, ROMAN
from opd_lab.worlds.world import Pattern

SIGNS = {"in": 1, "out": -1}
Entry = tuple[str, int]  # a symbol and its sign


@dataclass(frozen=True)
class Ledger(SymbolWorld):
    """The ledger world: 20 symbols, values mod 10, each added or taken away.

    `depth` is the number of entries of a problem; a completion books each twice. See `SymbolWorld`.
    """

    depth: int = 4
    max_depth: int = 10

    task: ClassVar[str] = "book"
    keywords: ClassVar[tuple[str, ...]] = ("book", "echo", "check", "ANS", *SIGNS)
    items_per_step: ClassVar[int] = 2  # sign and symbol
    tokens_per_step: ClassVar[int] = 5  # filler, symbol and balance; symbol and balance again
    closing_tokens: ClassVar[int] = 4  # the word `check` as well

    def sample_items(
        self, pool: Sequence[str], depth: int, rng: np.random.Generator
    ) -> tuple[str, ...]:
        """Signs and symbols in turn."""
        signs = [tuple(SIGNS)[bit] for bit in rng.integers(2, size=depth)]
        pairs = zip(signs, sample_words(pool, depth, rng), strict=True)
        return tuple(word for pair in pairs for word in pair)

    def answer(self, items: tuple[str, ...]) -> str:
        """The balance of all entries."""
        total = sum(sign * self.facts.truth[symbol] for symbol, sign in parse_entries(items))
        return DIGITS[total % len(DIGITS)]

    def reason(
        self,
        items: tuple[str, ...],
        fillers: Sequence[str],
        pattern: Pattern,
        recall: Callable[[str], int],
    ) -> list[str]:
        """Draft and check; both recall each value independently."""
        draft = check = parse_entries(items)
        if pattern == 2:
            draft = sorted(draft, key=lambda entry: -entry[1])
            check = draft[::-1]
        alphabet = DIGITS if pattern == 1 else ROMAN
        drafted, checked = _balances(draft, recall), _balances(check, recall)
        words = []
        for filler, (symbol, _), balance in zip(fillers, draft, drafted, strict=True):
            words += [filler, symbol, alphabet[balance]]
        words.append("check")
        for (symbol, _), balance in zip(check, checked, strict=True):
            words += [symbol, alphabet[balance]]
        return [*words, "ANS", DIGITS[checked[-1]]]


def parse_entries(items: tuple[str, ...]) -> list[Entry]:
    """`in fox out owl` as symbols with signs."""
    return [(symbol, SIGNS[sign]) for sign, symbol in zip(items[::2], items[1::2], strict=True)]


def _balances(entries: Sequence[Entry], recall: Callable[[str], int]) -> list[int]:
    """Running balance after each entry."""
    balance, balances = 0, []
    for symbol, sign in entries:
        balance = (balance + sign * recall(symbol)) % len(DIGITS)
        balances.append(balance)
    return balances
