"""What a teacher server is probed with, and what to do where it cannot serve a loss."""

from __future__ import annotations

from opd.types import Kind

TEXTS = (
    "The water in the river was cold and clear, and the children of the village came down to it "
    "every morning before school to wash their faces and to fill the buckets for their mothers.",
    "If a train leaves the station at nine in the morning and travels for three hours at sixty "
    "miles an hour, then it has gone one hundred and eighty miles by noon.",
)
HARD_STRINGS = (
    "Hello world",
    " leading space",
    "two  spaces   three",
    "tab\tand\nnewline\r\n\n",
    "don't WON'T it's",
    "1234567890 3.14159 -0.5",
    "1,000,000 2^{10} 50%",
    "\\frac{a}{b} $x_1^2$ \\boxed{42}",
    "def f(x):\n    return {'a': [1, 2]}",
    "你好世界",
    "こんにちは 안녕하세요",
    "Привет мир",
    "مرحبا",
    "naïve Straße É",
    "e\u0301 combining",
    "🙂 family 👩‍👩‍👧",
    "\u00a0nbsp \u200bzero",
    "½ Ⅳ ﬁ",
    "<b>html</b> &amp;",
    "https://example.org/a?b=c#d",
    "aaaaaaaaaaaaaaaaaaaaaaaa",
    "!!!???...---",
    "CamelCaseAndsnake_case",
    "x",
)


def missing_support_message(kinds: frozenset[Kind], k: int) -> str:
    """The choices where the loss needs student-chosen ids and the server cannot score them."""
    listed = ", ".join(sorted(kinds))
    return (
        f"loss.support=student_topk asks for the teacher's scores of {k} tokens the student chose, "
        f"at every position; this server gives {listed}. Choose:\n"
        "  loss.support=sampled       one token per position: unbiased for the whole reverse KL, "
        "but noisy\n"
        f"  loss.support=teacher_topk loss.mode=tail   the teacher's own {k} tokens and one bucket "
        "for the rest: low noise, but tokens only the student likes share one signal\n"
        "  opd serve-teacher          the teacher behind opd's own server: exactly the loss you "
        "asked for\n"
        "  loss.support=auto          student_topk where the server offers it, else teacher_topk "
        "with a tail"
    )
