"""Which completions are not worth imitating: cut off, going round in circles, without an answer.

The rules for circles are published ones: those of the code of arXiv 2604.13016, on characters, and
the compression test of arXiv 2604.08527. Text comes from models, so each is linear in its length.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence

from opd.config import AnswerRule
from opd.core.diagnostics import repetition
from opd.data import answers as reading
from opd.data.graders import Grader
from opd.types import Rollout

REASONS = ("truncated", "repetitive", "no_answer", "incorrect")

LINE, LINES = 20, 5  # a line of at least so many characters may stand fewer than so many times
WINDOW, STRIDE, WINDOWS = 100, 10, 3
LONG, BLOCK, BLOCKS = 5000, 50, 3  # in texts longer than LONG
SQUEEZED_LENGTH, SQUEEZED = 10_000, 10.0  # characters, and compression ratio


def circles(text: str) -> str | None:
    """Which of the published rules calls a text repetitive; None if none does."""
    lines = Counter(line for raw in text.split("\n") if len(line := raw.strip()) >= LINE)
    if lines and max(lines.values()) >= LINES:
        return f"a line of {LINE} or more characters stands {LINES} times or more"
    starts = range(0, len(text) - WINDOW + 1, STRIDE)
    windows = Counter(text[i : i + WINDOW] for i in starts)
    if windows and max(windows.values()) >= WINDOWS:
        return f"{WINDOW} characters stand {WINDOWS} times or more"
    if len(text) > LONG and _back_to_back(text):
        return f"{BLOCK} characters are repeated {BLOCKS} times on end"
    if len(text) > SQUEEZED_LENGTH:
        data = text.encode("utf-8", "surrogatepass")
        if len(data) / len(zlib.compress(data)) > SQUEEZED:
            return f"the text can be compressed to less than a tenth ({SQUEEZED:g} : 1)"
    return None


def _back_to_back(text: str) -> bool:
    """Whether some BLOCK characters stand BLOCKS times in a row: as many equal pairs at a lag."""
    run = 0
    for here, there in zip(text, text[BLOCK:], strict=False):
        run = run + 1 if here == there else 0
        if run >= BLOCK * (BLOCKS - 1):
            return True
    return False


def sift(
    examples: Sequence[Rollout],
    decode: Callable[[Sequence[int]], str],
    *,
    answer: AnswerRule,
    most_repetition: float | None,
    grader: Grader | None,
) -> tuple[list[Rollout], dict[str, int]]:
    """Keep what is worth imitating, and count what is not by its first reason.

    Args:
        examples: completions, such as a teacher's rollouts.
        decode: token ids to text, special tokens left out.
        answer: what an answer must be. auto: `marked` for mathematics in LaTeX, else `found`.
        most_repetition: largest share of repeated token 4-grams; None: the published rules alone.
        grader: for prompts with ground truths; needed for `right`.

    Returns:
        The kept ones in order, and {reason: count} over `REASONS`.
    """
    counts = dict.fromkeys(REASONS, 0)
    kept = []
    for example in examples:
        why = _why_not(example, decode(example.ids.tolist()), answer, most_repetition, grader)
        if why is None:
            kept.append(example)
        else:
            counts[why] += 1
    return kept, counts


def _why_not(
    example: Rollout, text: str, answer: AnswerRule, most: float | None, grader: Grader | None
) -> str | None:
    if example.finish == "length" or not len(example):
        return "truncated"
    if circles(text) is not None or (most is not None and repetition(example.ids) > most):
        return "repetitive"
    if answer == "ignore":
        return None
    kind = None if grader is None else grader.kind
    found = reading.extract(text)
    strict = answer == "marked" or (answer == "auto" and kind == "math")
    numberless = kind == "number" and not found.marked and reading.last_number(text) is None
    if not found.text or numberless or (strict and not found.marked):
        return "no_answer"
    if answer != "right":
        return None
    assert grader is not None
    truth = example.prompt.answer
    assert truth is not None
    return None if grader.grade([text], [truth])[0].correct else "incorrect"
