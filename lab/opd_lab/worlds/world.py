"""What a world is: a source of problems, of chains of thought in two patterns, and a tokenizer."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from transformers import PreTrainedTokenizerFast

Pattern = Literal[1, 2]

HELD_OUT_ONE_IN = 8


@dataclass(frozen=True, slots=True)
class Problem:
    """One question.

    Attributes:
        task: first word of the prompt, naming the skill.
        items: the words the question is about.
        answer: what must follow the last `ANS` of a completion.
    """

    task: str
    items: tuple[str, ...]
    answer: str

    @property
    def text(self) -> str:
        """The user message."""
        return " ".join((self.task, *self.items))

    @property
    def held_out(self) -> bool:
        """Whether this problem belongs to evaluation: decided by its text alone.

        So no corpus, prompt set or seed can leak a test problem into training.
        """
        return zlib.crc32(self.text.encode()) % HELD_OUT_ONE_IN == 0

    def row(self) -> dict[str, str]:
        """The problem as a line of a prompt file."""
        return {"problem": self.text, "answer": self.answer}


class World(Protocol):
    """A source of problems, of chains of thought in two patterns, and of a tokenizer."""

    @property
    def depth(self) -> int:
        """Default number of reasoning steps of a problem."""
        ...

    def problems(
        self, count: int, seed: int, *, depth: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """Generate problems of the world's own skill; the same arguments give the same list.

        Args:
            count: number of problems.
            seed: of the random numbers.
            depth: reasoning steps; None: the world's own.
            held_out: the side of the train/evaluation split the problems come from.

        Raises:
            ValueError: a depth the tokenizer and models do not hold.
        """
        ...

    def off_task(self, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """Generate problems of an unrelated skill, so that forgetting can be measured."""
        ...

    def solve(
        self, problem: Problem, pattern: Pattern, rng: np.random.Generator, *, corrupt: float = 0.0
    ) -> str:
        """Generate a chain of thought.

        Args:
            problem: what is solved.
            pattern: thinking pattern the chain of thought follows.
            rng: of fillers and wrong facts.
            corrupt: probability that a hard fact takes its wrong value, per use.
        """
        ...

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The world's tokenizer, a new object per call."""
        ...

    def max_tokens(self, depth: int | None = None) -> int:
        """Length of the longest well-formed completion, stop token included."""
        ...


def write_prompts(path: Path, problems: Sequence[Problem]) -> None:
    """Write problems as a prompt file, one JSON object per line."""
    lines = [json.dumps(problem.row()) + "\n" for problem in problems]
    path.write_text("".join(lines), encoding="utf-8")
