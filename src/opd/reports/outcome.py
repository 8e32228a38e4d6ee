"""A held-out set before and after, and what can be said of the difference."""

from __future__ import annotations

from dataclasses import dataclass

from opd.core import stats
from opd.core.stats import Estimate
from opd.reports.read import EvalSet


@dataclass(frozen=True)
class Outcome:
    """A held-out set before and after, with what can be said of the difference."""

    task: EvalSet
    gain: stats.Paired | None
    lead: stats.Paired | None  # teacher over the student before
    share: Estimate | None

    @property
    def before(self) -> Estimate:
        """The student before training."""
        return self.task.student[0].accuracy

    @property
    def after(self) -> Estimate:
        """The student at its latest evaluation, or the one that was kept."""
        return self.task.last.accuracy


def outcome(task: EvalSet) -> Outcome | None:
    """What a set shows; None when the student was never measured on it."""
    if not task.student:
        return None
    first, last, teacher = task.student[0], task.last, task.teacher
    gain = stats.paired(first.per_prompt, last.per_prompt) if first.step < last.step else None
    lead = None if teacher is None else stats.paired(first.per_prompt, teacher.per_prompt)
    share = None
    if teacher is not None and gain is not None and lead is not None and lead.difference.value > 0:
        share = stats.gap_recovery(first.per_prompt, last.per_prompt, teacher.per_prompt)
    return Outcome(task, gain, lead, share)


def answers(task: EvalSet) -> str:
    """How many answers to a prompt."""
    count = task.settings.get("n")
    return "1 answer each" if count == 1 else f"{count} answers each"
