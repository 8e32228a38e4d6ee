"""A generated world: a family of problems, written down with fillers in a tokenization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerFast

from opd.rng import generator
from opd_lab.streams import WorldStream
from opd_lab.worlds.generated.family import Family, Lapses, Recall
from opd_lab.worlds.generated.lexicon import FILLER_CHARACTERS
from opd_lab.worlds.generated.tokenization import TOKENIZATIONS, Tokenization
from opd_lab.worlds.symbol_world import ECHO
from opd_lab.worlds.vocabulary import Fillers
from opd_lab.worlds.world import Pattern, Problem

ECHO_ITEMS = 3
SEPARATOR = ";"  # between steps, where text is written without spaces
VOCABULARY_TEXTS = 600  # documents that a vocabulary is trained on and lengths are measured on
SLACK = 8  # tokens of context beyond the longest document seen


@dataclass(frozen=True)
class GeneratedWorld:
    """See `opd_lab.worlds.World`.

    Attributes:
        family: what the problems are.
        tokenization: name in `TOKENIZATIONS`.
        hard_fraction: fraction of lookups that a corpus may get wrong.
        fillers: words without meaning before each step, the source of entropy; 0: none.
        zipf: exponent of their weights.
    """

    family: Family
    tokenization: str
    hard_fraction: float = 0.5
    fillers: int = 0
    zipf: float = 1.5

    @property
    def name(self) -> str:
        """In records: family and tokenization."""
        return f"{self.family.name}-{self.tokenization}-{self.family.seed}"

    @property
    def depth(self) -> int:
        """See `World`: items, moves or columns of a problem."""
        return self.family.size

    @cached_property
    def lapses(self) -> Lapses:
        """What corpora get wrong."""
        return Lapses(self.family.seed, self.hard_fraction)

    @property
    def _tokenization(self) -> Tokenization:
        return TOKENIZATIONS[self.tokenization]

    @property
    def filler_words(self) -> tuple[str, ...]:
        """Fillers of both patterns."""
        return FILLER_CHARACTERS[: self.fillers]

    def problems(
        self, count: int, seed: int, *, depth: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """See `World.problems`; there is one depth.

        Raises:
            ValueError: another depth.
        """
        if depth not in (None, self.depth):
            raise ValueError(f"{self.name} has problems of depth {self.depth} alone")
        rng = generator(seed, WorldStream.PROBLEMS)
        problems = list[Problem]()
        while len(problems) < count:
            items = self.family.propose(rng)
            problem = self._problem(self.family.name, items, " ".join(self.family.answer(items)))
            if problem.held_out == held_out:
                problems.append(problem)
        return problems

    def off_task(self, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """See `World.off_task`: repeat three words."""
        rng = generator(seed, WorldStream.OFF_TASK)
        words, problems = self.family.words, list[Problem]()
        while len(problems) < count:
            items = tuple(words[i] for i in rng.integers(len(words), size=ECHO_ITEMS))
            problem = self._problem(ECHO, items, " ".join(items))
            if problem.held_out == held_out:
                problems.append(problem)
        return problems

    def _problem(self, task: str, items: tuple[str, ...], answer: str) -> Problem:
        return Problem(task, ("".join(items),) if self._tokenization.compact else items, answer)

    def items_of(self, problem: Problem) -> tuple[str, ...]:
        """The items of a problem, one character each."""
        return tuple("".join(problem.items))

    def solve(
        self, problem: Problem, pattern: Pattern, rng: np.random.Generator, *, corrupt: float = 0.0
    ) -> str:
        """See `World.solve`."""
        if problem.task == ECHO:
            return self.write([], problem.answer.split(" "))
        recall: Recall = self.lapses.recall(rng, corrupt)
        steps, answer = self.family.reason(self.items_of(problem), pattern, recall)
        if self.fillers:
            words = Fillers(self.filler_words, self.zipf).sample(pattern, rng, len(steps))
            steps = [[word, *step] for word, step in zip(words, steps, strict=True)]
        return self.write(steps, answer)

    def write(self, steps: Sequence[Sequence[str]], answer: Sequence[str]) -> str:
        """Steps and answer as text; without an answer, the steps alone."""
        if not self._tokenization.compact:
            end = ["ANS", *answer] if answer else []
            return " ".join([*(word for step in steps for word in step), *end])
        end = ["ANS:" + "".join(answer)] if answer else []
        return SEPARATOR.join([*("".join(step) for step in steps), *end])

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word, with the names of the tasks and the separators."""
        own = (self.family.name, ECHO, "ANS", *self.family.words, *self.filler_words)
        return tuple(dict.fromkeys((*own, *MARKERS)))

    @cached_property
    def _texts(self) -> tuple[list[str], list[str]]:
        """Prompts and completions in both patterns: what vocabulary and lengths come from."""
        rng = generator(self.family.seed, WorldStream.CORPUS)
        problems = self.problems(VOCABULARY_TEXTS, self.family.seed)
        texts = [self.solve(p, 2 if i % 2 else 1, rng) for i, p in enumerate(problems)]
        problems += self.off_task(VOCABULARY_TEXTS // 10, self.family.seed)
        return [p.text for p in problems], texts

    @cached_property
    def _lengths(self) -> tuple[int, int]:
        """Tokens of the longest prompt and completion seen, end tokens left out."""
        tokenizer = self._make_tokenizer(0)
        prompts, texts = self._texts
        return (
            max(len(tokenizer.encode(t, add_special_tokens=False)) for t in prompts),
            max(len(tokenizer.encode(t, add_special_tokens=False)) for t in texts),
        )

    def _make_tokenizer(self, context: int) -> PreTrainedTokenizerFast:
        prompts, texts = self._texts
        words = (*self.vocabulary, *(() if not self._tokenization.compact else (":", SEPARATOR)))
        return self._tokenization.tokenizer(words, [*prompts, *texts], context=context)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """See `World.tokenizer`."""
        prompt, completion = self._lengths
        return self._make_tokenizer(prompt + 2 * completion + 3 * SLACK)

    def max_tokens(self, depth: int | None = None) -> int:
        """See `World.max_tokens`: the longest document seen, an end token, and a little more."""
        return self._lengths[1] + 1 + 2


MARKERS = ("PLAN", "TASK")  # words that a prompt of some teachers begins with
