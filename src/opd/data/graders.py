r"""Is this completion right? Grading model text, which may be wrong, odd or hostile.

`exact` and `number` compare text and exact fractions here. `math` asks math-verify, which parses
LaTeX with sympy: one `\boxed{9^{9^{9}}}` can hold Python's lock inside a single C call for hours,
so it runs in a child process that is killed at its time limit.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from opd.data import answers as reading
from opd.data.math_sandbox import MathProcess
from opd.errors import MissingDependency, UserError
from opd.types import GraderKind, Prompt

TIME_LIMIT = 5.0  # seconds a text; math-verify needs about 0.1 for honest algebra

_LATEX = re.compile(r"[\\^_{}$]|[0-9a-z]\s*[-+*=<>]\s*[0-9a-z]|[(\[].*,.*[)\]]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Grade:
    """One verdict.

    Attributes:
        correct: whether the answer was found and is right.
        extracted: what was taken for the answer.
        reason: why, in a few words.
    """

    correct: bool
    extracted: str
    reason: str


class Grader:
    """Compares completions with ground truths; see `make_grader`.

    The child process of kind `math` starts at the first text that needs it, and ends with `close`,
    with the object, or with this process.
    """

    def __init__(self, kind: GraderKind, *, limit: float = TIME_LIMIT) -> None:
        self.kind = kind
        self._process = MathProcess(limit) if kind == "math" else None

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process, if there is one; the grader stays usable."""
        if self._process is not None:
            self._process.close()

    def grade(self, texts: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """Grade completions.

        Args:
            texts: completions, as decoded.
            answers: ground truths, one a text.

        Returns:
            One Grade a text, in order. A text that cannot be judged in time is wrong.
        """
        known: dict[tuple[str, str], Grade] = {}  # responses to one prompt often agree
        for pair in zip(texts, answers, strict=True):
            if pair not in known:
                known[pair] = self._one(*pair)
        return [known[pair] for pair in zip(texts, answers, strict=True)]

    def _one(self, text: str, answer: str) -> Grade:
        found = reading.extract(text)
        if not found.text:
            return Grade(False, "", "no answer")
        if self.kind == "number":
            return _number(text, found, answer)
        grade = _exact(found, answer)
        if grade.correct or self._process is None:
            return grade
        left, right = reading.whole_number(found.text), reading.whole_number(answer)
        if left is not None and right is not None and left.equals(right):
            return Grade(True, found.text, "equal numbers")
        correct, reason = self._process.equal(found.text, answer, marked=found.marked)
        return Grade(correct, found.text, reason)


def _exact(found: reading.Found, answer: str) -> Grade:
    want = reading.normalise(answer)
    if reading.normalise(found.text) == want:
        return Grade(True, found.text, "equal text")
    last = found.text.split()[-1]
    if not found.marked and reading.normalise(last) == want:
        return Grade(True, last, "equal last word")
    return Grade(False, found.text, "different text")


def _number(text: str, found: reading.Found, answer: str) -> Grade:
    want = reading.whole_number(answer)
    if want is None:
        return Grade(False, found.text, f"the ground truth {answer[:40]!r} is not a number")
    got = reading.whole_number(found.text) if found.marked else reading.last_number(text)
    if got is None:
        return Grade(False, found.text, "not one number")
    shown = found.text if found.marked else got.text
    return Grade(got.equals(want), shown, "equal numbers" if got.equals(want) else "another number")


def make_grader(
    kind: GraderKind | Literal["auto"],
    answers: Sequence[str],
    *,
    limit: float = TIME_LIMIT,
) -> Grader:
    """A grader fit for these ground truths.

    Args:
        kind: `auto` takes `number` where every ground truth is one number, `math` where any looks
            like mathematics, else `exact`.
        answers: all ground truths of the prompt set.
        limit: most seconds the math checker may spend on one text.

    Raises:
        UserError: `number` for ground truths that are not numbers.
        MissingDependency: `math` without math-verify.
    """
    odd = next((a for a in answers if reading.whole_number(a) is None), None)
    if kind == "auto":
        if odd is None:
            kind = "number"
        else:
            kind = "math" if any(_LATEX.search(a) for a in answers) else "exact"
    if kind == "number" and odd is not None:
        raise UserError(
            f"grader=number, but the ground truth {odd[:80]!r} is not a number. Use grader: math "
            "(LaTeX), exact (text), or auto."
        )
    if kind == "math" and importlib.util.find_spec("math_verify") is None:
        raise MissingDependency("math-verify", needed_for="Grading LaTeX answers", extra="math")
    return Grader(kind, limit=limit)


def grader_for(
    prompts: Sequence[Prompt],
    kind: GraderKind | Literal["auto"],
    *,
    required_by: str | None = None,
    remedy: str = "",
) -> Grader | None:
    """A grader fit for the ground truths of these prompts, or None when one of them has none.

    Args:
        prompts: to be graded.
        kind: see `make_grader`.
        required_by: key and value that need a ground truth for every prompt; None if nothing does.
        remedy: how to do without, for the error.

    Raises:
        UserError: `required_by` is given and a ground truth is missing; see also `make_grader`.
    """
    answers = [p.answer for p in prompts if p.answer is not None]
    missing = len(prompts) - len(answers)
    if not missing:
        return make_grader(kind, answers)
    if required_by is None:
        return None
    raise UserError(
        f"{required_by} needs an answer for every prompt; {missing} of {len(prompts)} have none. "
        f"Give each row an `answer`{remedy and ', or '}{remedy}."
    )
