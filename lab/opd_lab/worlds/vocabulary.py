"""Word lists of the worlds, the fillers that mark a pattern, and a word-level tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from opd_lab.worlds.world import Pattern

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

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %} <assistant> {{ message['content'] }} {{ eos_token }}"
    "{% else %} <user> {{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Fillers:
    """Words without meaning before each step: the source of entropy, and a mark of the pattern.

    Weights are Zipf's, rank to the power -`exponent`; pattern 2 ranks the words rotated by half.
    """

    words: tuple[str, ...]
    exponent: float

    def sample(self, pattern: Pattern, rng: np.random.Generator, count: int) -> list[str]:
        """Sample `count` fillers of a pattern."""
        shift = 0 if pattern == 1 else len(self.words) // 2
        ranks = np.searchsorted(_cumulative(len(self.words), self.exponent), rng.random(count))
        return [self.words[(int(rank) + shift) % len(self.words)] for rank in ranks]


@cache
def _cumulative(count: int, exponent: float) -> Any:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.cumsum(weights / weights.sum())


def detect_pattern(text: str) -> Pattern | None:
    """Which pattern a completion follows, by its alphabet; None: neither, or both."""
    words = [word.lstrip("+-") for word in text.partition("ANS")[0].split()]
    digits, roman = (sum(w in alphabet for w in words) for alphabet in (DIGITS, ROMAN))
    if bool(digits) == bool(roman):
        return None
    return 1 if digits else 2


def pseudowords(count: int) -> tuple[str, ...]:
    """Pronounceable two-syllable words, always the same ones: bada, bade, ..."""
    syllables = [c + v for v in "aeiou" for c in "bdfghjklmnprstvz"]
    words = [a + b for a in syllables for b in syllables if a != b]
    return tuple(words[i * len(words) // count] for i in range(count))


def word_tokenizer(words: Sequence[str], *, context: int) -> PreTrainedTokenizerFast:
    """An ordinary fast tokenizer, one token per space-separated word, with a chat template.

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
