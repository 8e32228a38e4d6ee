"""A teacher with a prompt of its own, and a teacher that is the student itself.

Scores are one row per completion token, so they align whatever the length of the prompt before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opd.data.teacher_prompts import TeacherPrompts
from opd.models.self_weights import SelfWeights
from opd.teachers.local import LocalTeacher
from opd.types import Rollout, Scores, Teacher, Want


class PromptedTeacher:
    """`opd.types.Teacher` that scores each completion after the teacher's own prompt."""

    def __init__(self, teacher: Teacher, prompts: TeacherPrompts) -> None:
        """Make a teacher.

        Args:
            teacher: scores what it is given.
            prompts: what it sees in place of the student's prompts.
        """
        self.teacher, self.prompts = teacher, prompts
        self.name, self.kinds = teacher.name, teacher.kinds

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`."""
        seen = [replace(r, prompt=self.prompts.of(r.prompt)) for r in rollouts]
        return self.teacher.score(seen, want)


class StudentAsTeacher(LocalTeacher):
    """`opd.types.Teacher` for the student's own weights, frozen, live or averaged."""

    def __init__(
        self, weights: SelfWeights, *, tokens_per_batch: int = 8192, temperature: float = 1.0
    ) -> None:
        """Make a teacher.

        Args:
            weights: which of the student's.
            tokens_per_batch: padded tokens per forward.
            temperature: divides the logits before every score.
        """
        super().__init__(weights.lm, tokens_per_batch=tokens_per_batch, temperature=temperature)
        self.weights, self.name = weights, f"the student itself ({weights.kind})"

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`."""
        self.lm.model.eval()
        with self.weights.in_place():
            return super().score(rollouts, want)
