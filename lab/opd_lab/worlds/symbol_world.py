"""What chain, ledger and route have in common: symbols with hidden values, one per reasoning step.

A subclass says which words it uses, how a problem is sampled and answered, and how a chain of
thought goes on. Order of the random numbers: pool, then items until the split fits; in a chain of
thought fillers, then facts. Another order would be another corpus.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
from transformers import PreTrainedTokenizerFast

from opd.rng import generator
from opd_lab.streams import WorldStream
from opd_lab.worlds.facts import Facts
from opd_lab.worlds.vocabulary import (
    ANIMALS,
    DIGITS,
    FILLERS,
    ROMAN,
    Fillers,
    word_tokenizer,
)
from opd_lab.worlds.world import Pattern, Problem

ECHO = "echo"  # the off-task skill that all worlds share: repeat three words


@dataclass(frozen=True)
class SymbolWorld(ABC):
    """A world whose problems are about symbols with hidden values mod 10.

    Attributes:
        depth: reasoning steps of a problem.
        max_depth: largest depth that tokenizer and models must hold.
        hard_fraction: fraction of symbols that have a wrong value in corpora.
        zipf: exponent of the filler weights.
        seed: of the hidden values.
    """

    depth: int
    max_depth: int
    hard_fraction: float = 0.5
    zipf: float = 1.5
    seed: int = 0

    task: ClassVar[str]  # first word of a prompt
    keywords: ClassVar[tuple[str, ...]]  # words of the vocabulary beside the lists below
    symbols: ClassVar[tuple[str, ...]] = ANIMALS
    numerals: ClassVar[tuple[str, ...]] = (*DIGITS, *ROMAN)
    fillers: ClassVar[tuple[str, ...]] = FILLERS
    items_per_step: ClassVar[int] = 1  # words of the prompt per reasoning step
    tokens_per_step: ClassVar[int] = 3  # of a completion
    closing_tokens: ClassVar[int] = 3  # of a completion, beside its steps: ANS, digit, stop token
    problem_stream: ClassVar[WorldStream] = WorldStream.PROBLEMS

    @abstractmethod
    def answer(self, items: tuple[str, ...]) -> str:
        """The right answer to a problem about `items`."""

    @abstractmethod
    def reason(
        self,
        items: tuple[str, ...],
        fillers: Sequence[str],
        pattern: Pattern,
        recall: Callable[[str], int],
    ) -> list[str]:
        """The words of a chain of thought, from the first filler to the answer.

        Args:
            items: of the problem.
            fillers: one per reasoning step.
            pattern: thinking pattern.
            recall: the value of a symbol, now and then a wrong one; each call draws anew.
        """

    def symbol_pool(
        self,
        index: int,
        rng: np.random.Generator,
        *,
        held_out: bool,
    ) -> Sequence[str]:
        """The symbols that problem number `index` may be about."""
        return self.symbols

    def sample_items(
        self, pool: Sequence[str], depth: int, rng: np.random.Generator
    ) -> tuple[str, ...]:
        """The words of one problem."""
        return sample_words(pool, depth, rng)

    @cached_property
    def facts(self) -> Facts:
        """Hidden values of the symbols."""
        return Facts.sample(self.symbols, len(DIGITS), self.hard_fraction, self.seed)

    def problems(
        self, count: int, seed: int, *, depth: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """See `World.problems`."""
        depth = self.depth if depth is None else depth
        if not 1 <= depth <= self.max_depth:
            raise ValueError(f"depth {depth} is outside 1..{self.max_depth}")
        rng = generator(seed, self.problem_stream)
        problems = []
        for index in range(count):
            pool = self.symbol_pool(index, rng, held_out=held_out)
            propose = partial(self.sample_items, pool, depth, rng)
            items = sample_until_split(self.task, propose, held_out=held_out)
            problems.append(Problem(self.task, items, self.answer(items)))
        return problems

    def off_task(self, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """See `World.off_task`: repeat three symbols."""
        rng = generator(seed, WorldStream.OFF_TASK)
        propose = partial(sample_words, self.symbols, 3, rng)
        items = [sample_until_split(ECHO, propose, held_out=held_out) for _ in range(count)]
        return [Problem(ECHO, words, " ".join(words)) for words in items]

    def solve(
        self, problem: Problem, pattern: Pattern, rng: np.random.Generator, *, corrupt: float = 0.0
    ) -> str:
        """See `World.solve`."""
        if problem.task == ECHO:
            return f"ANS {problem.answer}"
        steps = len(problem.items) // self.items_per_step
        fillers = Fillers(self.fillers, self.zipf).sample(pattern, rng, steps)
        recall = partial(self.facts.recall, rng=rng, corrupt=corrupt)
        return " ".join(self.reason(problem.items, fillers, pattern, recall))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """See `World.tokenizer`."""
        words = [*self.keywords, *self.symbols, *self.numerals, *self.fillers]
        context = (self.items_per_step + self.tokens_per_step) * self.max_depth + 16
        return word_tokenizer(words, context=context)

    def max_tokens(self, depth: int | None = None) -> int:
        """See `World.max_tokens`."""
        depth = self.depth if depth is None else depth
        return self.tokens_per_step * depth + self.closing_tokens


def sample_words(words: Sequence[str], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Sample `count` distinct words, in random order."""
    return tuple(words[i] for i in rng.permutation(len(words))[:count])


def sample_until_split(
    task: str, propose: Callable[[], tuple[str, ...]], *, held_out: bool
) -> tuple[str, ...]:
    """The first proposal on the wanted side of the train/evaluation split."""
    while Problem(task, items := propose(), "").held_out != held_out:
        pass
    return items
