"""What all worlds share: problems, hidden values, fillers, and a word-level tokenizer."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

Pattern = Literal[1, 2]

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>")
DIGITS = tuple("0123456789")
ROMAN = ("N", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
# fmt: off
ANIMALS = (
    "ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay",
    "kite", "lynx", "mole", "newt", "owl", "pig", "ram", "seal", "toad", "wolf",
)
FILLERS = (
    "then", "next", "so", "now", "and", "plus", "add", "take", "well", "also", "hmm", "ok",
)
# fmt: on
HELD_OUT_ONE_IN = 8

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} <assistant> {{ message['content'] }} {{ eos_token }}"
    "{% else %} <user> {{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


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
    def horizon(self) -> int:
        """Reasoning steps of a problem unless asked otherwise."""
        ...

    def problems(
        self, count: int, seed: int, *, horizon: int | None = None, held_out: bool = False
    ) -> list[Problem]:
        """Draw problems of the world's own skill; the same arguments give the same list."""
        ...

    def off_task(self, count: int, seed: int, *, held_out: bool = False) -> list[Problem]:
        """Draw problems of an unrelated skill, so that forgetting can be seen."""
        ...

    def solve(
        self, problem: Problem, pattern: Pattern, rng: np.random.Generator, *, corrupt: float = 0.0
    ) -> str:
        """Write a chain of thought; `corrupt` is how often a hard fact takes its wrong value."""
        ...

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The world's tokenizer, a fresh one a call."""
        ...

    def max_tokens(self, horizon: int | None = None) -> int:
        """Length of the longest well-formed completion, stop token included."""
        ...


def write_prompts(path: Path, problems: Sequence[Problem]) -> None:
    """Write problems as a prompt file, one JSON object a line."""
    lines = [json.dumps(problem.row()) + "\n" for problem in problems]
    path.write_text("".join(lines), encoding="utf-8")


def generator(*key: int) -> np.random.Generator:
    """A generator that depends on `key` alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def some(words: Sequence[str], count: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw `count` distinct words, in order."""
    return tuple(words[i] for i in rng.permutation(len(words))[:count])


def draw(task: str, propose: Callable[[], tuple[str, ...]], *, held_out: bool) -> tuple[str, ...]:
    """The first proposal on the asked side of the train/held-out split."""
    while Problem(task, items := propose(), "").held_out != held_out:
        pass
    return items


def echoes(items: Sequence[str], count: int, seed: int, *, held_out: bool) -> list[Problem]:
    """Problems of the off-task skill all worlds share: repeat three words."""
    rng = generator(seed, 1)
    drawn = [draw("echo", lambda: some(items, 3, rng), held_out=held_out) for _ in range(count)]
    return [Problem("echo", words, " ".join(words)) for words in drawn]


@dataclass(frozen=True, slots=True)
class Fillers:
    """Words without meaning before each step: the source of entropy, and a mark of the pattern.

    Weights are Zipf's, rank to the power -`exponent`; pattern 2 ranks the words rotated by half.
    """

    words: tuple[str, ...]
    exponent: float

    def write(self, pattern: Pattern, rng: np.random.Generator, count: int) -> list[str]:
        """Draw `count` fillers of a pattern."""
        shift = 0 if pattern == 1 else len(self.words) // 2
        ranks = np.searchsorted(_cumulative(len(self.words), self.exponent), rng.random(count))
        return [self.words[(int(rank) + shift) % len(self.words)] for rank in ranks]


@cache
def _cumulative(count: int, exponent: float) -> Any:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.cumsum(weights / weights.sum())


def pattern_of(text: str) -> Pattern | None:
    """Which pattern a completion is written in, by its alphabet; None: neither, or both."""
    words = [word.lstrip("+-") for word in text.partition("ANS")[0].split()]
    digits, roman = (sum(w in alphabet for w in words) for alphabet in (DIGITS, ROMAN))
    if bool(digits) == bool(roman):
        return None
    return 1 if digits else 2


def pseudowords(count: int) -> tuple[str, ...]:
    """Pronounceable two-syllable words, the same ones for ever: bada, bade, ..."""
    syllables = [c + v for v in "aeiou" for c in "bdfghjklmnprstvz"]
    words = [a + b for a in syllables for b in syllables if a != b]
    return tuple(words[i * len(words) // count] for i in range(count))


def word_tokenizer(words: Sequence[str], *, context: int) -> PreTrainedTokenizerFast:
    """An ordinary fast tokenizer, one token a space-separated word, with a chat template.

    Raises:
        ValueError: a word occurs twice (a world's word lists overlap).
    """
    vocabulary = [*SPECIAL, *words]
    if len(set(vocabulary)) < len(vocabulary):
        raise ValueError("a world's words must be distinct")
    model = WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
