"""Filters of completions to imitate: truncated, repetitive, without an answer, incorrect.

The rules for repetition are published: those of the code of arXiv 2604.13016, on characters, and
the compression test of arXiv 2604.08527. Text comes from models, so each is linear in its length.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence

from opd.config import AnswerRule
from opd.data.answers import extract_answer, last_number
from opd.data.graders import Grader
from opd.types import Rollout

REASONS = ("truncated", "repetitive", "no_answer", "incorrect")

# Lengths in characters; a text is repetitive from so many occurrences on.
LINE_LENGTH, LINE_REPEATS = 20, 5
WINDOW_LENGTH, WINDOW_STRIDE, WINDOW_REPEATS = 100, 10, 3
BLOCK_LENGTH, BLOCK_REPEATS, BLOCK_MIN_TEXT = 50, 3, 5000
COMPRESSION_RATIO, COMPRESSION_MIN_TEXT = 10.0, 10_000


def find_repetition(text: str) -> str | None:
    """Name the published rule by which a text is repetitive; None if none applies."""
    lines = Counter(line for raw in text.split("\n") if len(line := raw.strip()) >= LINE_LENGTH)
    if lines and max(lines.values()) >= LINE_REPEATS:
        return f"a line of {LINE_LENGTH} or more characters occurs {LINE_REPEATS} times or more"
    starts = range(0, len(text) - WINDOW_LENGTH + 1, WINDOW_STRIDE)
    windows = Counter(text[i : i + WINDOW_LENGTH] for i in starts)
    if windows and max(windows.values()) >= WINDOW_REPEATS:
        return f"{WINDOW_LENGTH} characters occur {WINDOW_REPEATS} times or more"
    if len(text) > BLOCK_MIN_TEXT and _repeats_block(text):
        return f"{BLOCK_LENGTH} characters are repeated {BLOCK_REPEATS} times in a row"
    if len(text) > COMPRESSION_MIN_TEXT:
        data = text.encode("utf-8", "surrogatepass")
        if len(data) / len(zlib.compress(data)) > COMPRESSION_RATIO:
            return f"the text compresses to less than a tenth ({COMPRESSION_RATIO:g} : 1)"
    return None


def _repeats_block(text: str) -> bool:
    """Whether BLOCK_LENGTH characters occur BLOCK_REPEATS times in a row.

    Then that many characters in a row equal those BLOCK_LENGTH before them.
    """
    run = 0
    for char, later in zip(text, text[BLOCK_LENGTH:], strict=False):
        run = run + 1 if char == later else 0
        if run >= BLOCK_LENGTH * (BLOCK_REPEATS - 1):
            return True
    return False


def filter_completions(
    examples: Sequence[Rollout],
    decode: Callable[[Sequence[int]], str],
    *,
    answer: AnswerRule,
    grader: Grader | None,
) -> tuple[list[Rollout], dict[str, int]]:
    """Keep completions worth imitating, and count the others by the first reason against them.

    Args:
        examples: completions, such as a teacher's rollouts.
        decode: token ids to text, special tokens left out.
        answer: what an answer must be. auto: `marked` for mathematics in LaTeX, else `found`.
        grader: for prompts with ground truths; needed for `right`.

    Returns:
        The kept completions in order, and {reason: count} over `REASONS`.
    """
    counts = dict.fromkeys(REASONS, 0)
    kept = []
    for example in examples:
        reason = _reason_against(example, decode(example.ids.tolist()), answer, grader)
        if reason is None:
            kept.append(example)
        else:
            counts[reason] += 1
    return kept, counts


def _reason_against(
    example: Rollout,
    text: str,
    answer: AnswerRule,
    grader: Grader | None,
) -> str | None:
    if example.finish == "length" or not len(example):
        return "truncated"
    if find_repetition(text) is not None:
        return "repetitive"
    if answer == "ignore":
        return None
    kind = None if grader is None else grader.kind
    extracted = extract_answer(text)
    strict = answer == "marked" or (answer == "auto" and kind == "math")
    no_number = kind == "number" and not extracted.marked and last_number(text) is None
    if not extracted.text or no_number or (strict and not extracted.marked):
        return "no_answer"
    if answer != "right":
        return None
    assert grader is not None
    truth = example.prompt.answer
    assert truth is not None
    return None if grader.grade([text], [truth])[0].correct else "incorrect"
