"""When two prompts ask the same question, however they are dressed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from opd.types import Prompt


def question_key(text: str) -> str:
    """Letters and digits of a text, case folded: equal for questions that differ in layout alone.

    A text without any letter or digit is its own key.
    """
    return "".join(c for c in text.casefold() if c.isalnum()) or text


def without(prompts: Sequence[Prompt], used: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """The prompts whose question is none of the used ones'."""
    keys = {question_key(p.text) for p in used}
    return tuple(p for p in prompts if question_key(p.text) not in keys)
