"""A teacher that is a Python object of the user's: `teacher.python`, or `opd.Run(teacher=...)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opd.config import PythonTeacher, Run
from opd.config.python_objects import GIVEN, load_object
from opd.core.diagnostics import OVERLAP_K
from opd.core.objective import Objective
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.run.clock import Clock
from opd.run.console import Console
from opd.teachers.remote import replace_full, set_positions
from opd.teachers.validate import check_answer
from opd.types import Kind, Rollout, Scores, Teacher, Want

CONTRACT = ("name", "kinds", "score")


@dataclass
class CheckedTeacher:
    """A user's teacher, asked for no more than its contract says; its answers are checked.

    Attributes:
        inner: the user's object.
        vocab: tokens of the student.
        topk: how many of its top tokens the diagnostics want; 0 for none.
    """

    inner: Teacher
    vocab: int
    topk: int

    def __post_init__(self) -> None:
        self.name = str(self.inner.name)
        self.kinds = frozenset(self.inner.kinds)

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`.

        Raises:
            UserError: an answer that is not what was asked for, or that no distribution has.
        """
        request = replace_full(want, self.topk)
        answer = list(self.inner.score(rollouts, request))
        if len(answer) != len(rollouts):
            raise UserError(
                f"teacher {self.name}: score() returned {len(answer)} results for "
                f"{len(rollouts)} rollouts. It must return one Scores per rollout, in order."
            )
        for scores, rollout in zip(answer, rollouts, strict=True):
            try:
                check_answer(scores, rollout, request, self.vocab)
            except ValueError as error:
                raise UserError(f"teacher {self.name}: score() returned {error}") from None
        return set_positions([_as_contracted(scores) for scores in answer], want)


def _as_contracted(scores: Scores) -> Scores:
    """The same numbers in the types of the contract: ids int32, everything else float32."""
    arrays: dict[str, Any] = {
        name: array.astype(np.int32 if name == "topk_ids" else np.float32)
        for name, array in scores.arrays().items()
    }
    return replace(scores, **arrays)


@dataclass
class OwnTeacher:
    """A user's teacher, on the way from configuration to `Teacher`."""

    spec: PythonTeacher
    inner: Any

    eos: frozenset[int] = frozenset()
    generates = False

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of scores it gives."""
        return frozenset(self.inner.kinds)

    def handshake(
        self, cfg: Run, objective: Objective, vocab: int, tokenizer: Any, prompts: PromptSet
    ) -> None:
        """Refuse a loss it cannot serve.

        Raises:
            UserError: with what the loss needs and what the teacher gives.
        """
        needed = {Kind.SUPPORT} if objective.want.support else set()
        needed |= {Kind.SAMPLED} if objective.want.sampled else set()
        needed |= {Kind.TOPK} if objective.want.topk else set()
        needed |= {Kind.FULL} if objective.needs_full_teacher else set()
        if missing := sorted(needed - self.kinds):
            raise UserError(
                f"The loss (loss.support={cfg.loss.support}) needs scores of kind "
                f"{', '.join(missing)}, and teacher {self.inner.name} gives "
                f"{', '.join(sorted(self.kinds)) or 'none'}. Add them to its `kinds` and `score`, "
                "or choose another loss.support."
            )

    def teacher(
        self, cfg: Run, vocab: int, folder: Path, console: Console, clock: Clock
    ) -> Teacher:
        """The teacher of the run."""
        topk = min(OVERLAP_K, vocab) if Kind.TOPK in self.kinds and cfg.diagnostics.positions else 0
        return CheckedTeacher(self.inner, vocab, topk)


def find_own_teacher(spec: PythonTeacher) -> OwnTeacher:
    """The user's teacher: the object itself, or what a function without arguments returns.

    Raises:
        UserError: it cannot be imported, or lacks a part of the contract `opd.types.Teacher`.
    """
    value = load_object(spec.python, key="teacher.python", group="opd.teachers")
    is_function = callable(value) and not hasattr(value, "score")
    if isinstance(value, type) or (is_function and not spec.python.startswith(GIVEN)):
        value = value()
    missing = [part for part in CONTRACT if not hasattr(value, part)]
    if missing:
        raise UserError(
            f"teacher.python={spec.python} gives a {type(value).__name__} without "
            f"{', '.join(missing)}. A teacher has name, kinds and score(rollouts, want); see "
            "opd.types.Teacher."
        )
    return OwnTeacher(spec, value)
