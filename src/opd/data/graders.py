r"""Graders: whether a completion is correct. Model text may be malformed or hostile.

`exact` and `number` compare text and exact fractions here. `math` asks math-verify, which parses
LaTeX with sympy: one `\boxed{9^{9^{9}}}` can hold Python's lock inside a single C call for hours,
so it runs in a child process that is killed at its time limit.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from opd.config.python_objects import PREFIX, load_object
from opd.data.answers import (
    ExtractedAnswer,
    extract_answer,
    last_number,
    normalise,
    parse_number,
)
from opd.data.math_comparisons import MathComparer
from opd.errors import MissingDependency, UserError
from opd.types import GraderKind, Prompt, Rollout

TIME_LIMIT = 5.0  # seconds per text; math-verify needs about 0.1 for ordinary algebra

_LATEX = re.compile(r"[\\^_{}$]|[0-9a-z]\s*[-+*=<>]\s*[0-9a-z]|[(\[].*,.*[)\]]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Grade:
    """One verdict.

    Attributes:
        correct: whether the answer was found and is right.
        extracted: the answer taken from the completion.
        reason: for the verdict, in a few words.
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
        self.kind: str = kind
        self._comparer = MathComparer(limit) if kind == "math" else None

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process, if there is one; the grader stays usable."""
        if self._comparer is not None:
            self._comparer.close()

    def grade(self, texts: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """Grade completions.

        Args:
            texts: completions, as decoded.
            answers: ground truths, one per text.

        Returns:
            One Grade per text, in order. A text that cannot be graded in time is wrong.
        """
        grades: dict[tuple[str, str], Grade] = {}  # responses to one prompt are often equal
        for text, truth in zip(texts, answers, strict=True):
            if (text, truth) not in grades:
                grades[text, truth] = self._grade_one(text, truth)
        return [grades[pair] for pair in zip(texts, answers, strict=True)]

    def rewards(self, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """What training rollouts earn, (R,): 1 for a correct answer, 0 for others."""
        return np.array([float(g.correct) for g in self.grade(texts, answers)])

    def _grade_one(self, text: str, truth: str) -> Grade:
        answer = extract_answer(text)
        if not answer.text:
            return Grade(False, "", "no answer")
        if self.kind == "number":
            return _compare_numbers(text, answer, truth)
        grade = _compare_texts(answer, truth)
        if grade.correct or self._comparer is None:
            return grade
        number, true_number = parse_number(answer.text), parse_number(truth)
        if number is not None and true_number is not None and number.equals(true_number):
            return Grade(True, answer.text, "equal numbers")
        correct, reason = self._comparer.compare(answer.text, truth, marked=answer.marked)
        return Grade(correct, answer.text, reason)


class FunctionGrader(Grader):
    """A grader of the user's: a function of completion and ground truth.

    Args:
        function: `function(completion, answer)`: True or False, or for training a finite number.
        name: of the function, for messages and for the keys of evaluations.
    """

    def __init__(self, function: Callable[[str, str], bool | float], name: str) -> None:
        super().__init__("exact")
        self.kind, self._function = name, function

    def grade(self, texts: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """See `Grader.grade`.

        Raises:
            UserError: the function returned something else than True or False.
        """
        grades = []
        for value in self._values(texts, answers):
            if not isinstance(value, bool | np.bool_):
                raise UserError(
                    f"{self.kind} returned {value!r}. A grader of held-out answers returns True or "
                    "False; a number is a reward, which only training takes (prompts.grader)."
                )
            grades.append(Grade(bool(value), "", f"by {self.kind}"))
        return grades

    def rewards(self, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """See `Grader.rewards`.

        Raises:
            UserError: the function returned no finite number.
        """
        values = list(self._values(texts, answers))
        for value in values:
            if not isinstance(value, bool | int | float | np.number | np.bool_) or not np.isfinite(
                value
            ):
                raise UserError(f"{self.kind} returned {value!r}, which is no finite number.")
        return np.array([float(value) for value in values])

    def _values(self, texts: Sequence[str], answers: Sequence[str]) -> Iterator[Any]:
        return (self._function(text, truth) for text, truth in zip(texts, answers, strict=True))


def _compare_texts(answer: ExtractedAnswer, truth: str) -> Grade:
    expected = normalise(truth)
    if normalise(answer.text) == expected:
        return Grade(True, answer.text, "equal text")
    last = answer.text.split()[-1]
    if not answer.marked and normalise(last) == expected:
        return Grade(True, last, "equal last word")
    return Grade(False, answer.text, "different text")


def _compare_numbers(text: str, answer: ExtractedAnswer, truth: str) -> Grade:
    expected = parse_number(truth)
    if expected is None:
        return Grade(False, answer.text, f"the ground truth {truth[:40]!r} is not a number")
    number = parse_number(answer.text) if answer.marked else last_number(text)
    if number is None:
        return Grade(False, answer.text, "not one number")
    correct = number.equals(expected)
    extracted = answer.text if answer.marked else number.text
    return Grade(correct, extracted, "equal numbers" if correct else "another number")


def make_grader(
    kind: GraderKind | Literal["auto"],
    answers: Sequence[str],
    *,
    limit: float = TIME_LIMIT,
) -> Grader:
    """Make a grader fit for these ground truths.

    Args:
        kind: `auto` takes `number` where every ground truth is one number, `math` where any looks
            like mathematics, else `exact`.
        answers: all ground truths of the prompt set.
        limit: seconds that the math checker may spend on one text.

    Raises:
        UserError: `number` for ground truths that are not numbers.
        MissingDependency: `math` without math-verify.
    """
    not_a_number = next((a for a in answers if parse_number(a) is None), None)
    if kind == "auto":
        if not_a_number is None:
            kind = "number"
        else:
            kind = "math" if any(_LATEX.search(a) for a in answers) else "exact"
    if kind == "number" and not_a_number is not None:
        raise UserError(
            f"grader=number, but the ground truth {not_a_number[:80]!r} is not a number. Use "
            "grader: math (LaTeX), exact (text), or auto."
        )
    if kind == "math" and importlib.util.find_spec("math_verify") is None:
        raise MissingDependency("math-verify", needed_for="Grading LaTeX answers", extra="math")
    return Grader(kind, limit=limit)


def grader_for(
    prompts: Sequence[Prompt],
    kind: str,
    *,
    required_by: str | None = None,
    remedy: str = "",
) -> Grader | None:
    """Make a grader fit for the ground truths of these prompts; None when one of them has none.

    Args:
        prompts: to be graded.
        kind: see `make_grader`.
        required_by: key and value that need a ground truth for every prompt; None if nothing does.
        remedy: how to do without, for the error.

    Raises:
        UserError: `required_by` is given and a ground truth is missing; see also `make_grader`.
    """
    if kind.startswith(PREFIX):
        name = kind.removeprefix(PREFIX)
        return FunctionGrader(load_object(name, key="grader", group="opd.graders"), kind)
    answers = [p.answer for p in prompts if p.answer is not None]
    missing = len(prompts) - len(answers)
    if not missing:
        return make_grader(cast("GraderKind", kind), answers)
    if required_by is None:
        return None
    first = next(p.index for p in prompts if p.answer is None)
    raise UserError(
        f"{required_by} needs an answer for every prompt; {missing} of {len(prompts)} have none, "
        f"the first in line {first + 1} (blank lines not counted). "
        f"Give each row an `answer`{remedy and ', or '}{remedy}."
    )


def grade_rollouts(
    grader: Grader, rollouts: Sequence[Rollout], decode: Callable[[Sequence[int]], str]
) -> np.ndarray:
    """The reward of each rollout: whether it answers its prompt correctly, or a function's number.

    Args:
        grader: of the prompts' ground truths.
        rollouts: R rollouts; one without a ground truth is incorrect.
        decode: token ids to text, special tokens left out.

    Returns:
        (R,).
    """
    texts = [decode(r.ids.tolist()) for r in rollouts]
    return grader.rewards(texts, [r.prompt.answer or "" for r in rollouts])


def grade_for_accuracy(
    grader: Grader, rollouts: Sequence[Rollout], decode: Callable[[Sequence[int]], str]
) -> np.ndarray:
    """As `grade_rollouts`, for means that are read as accuracies.

    Returns:
        (R,) in [0, 1].

    Raises:
        UserError: a function's reward outside of that.
    """
    rewards = grade_rollouts(grader, rollouts, decode)
    outside = rewards[(rewards < 0) | (rewards > 1)]
    if len(outside):
        raise UserError(
            f"{grader.kind} returned {outside[0]:g}. A reward of any size trains, but an accuracy "
            "is made of values from 0 to 1 (False to True). For opd check and opd select set "
            "prompts.grader to a function that returns those, or to auto."
        )
    return rewards
