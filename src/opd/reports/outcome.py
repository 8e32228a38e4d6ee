"""A held-out set before and after training, and the statistics of the difference."""

from __future__ import annotations

from dataclasses import dataclass

from opd.core import stats
from opd.core.stats import Estimate
from opd.reports.eval_sets import EvalSet


@dataclass(frozen=True)
class Outcome:
    """What training changed on one held-out set.

    Attributes:
        task: the set with its evaluations.
        gain: student after minus student before; None without an evaluation after.
        lead: teacher minus student before; None without an evaluation of the teacher.
        recovery: fraction of the lead that was recovered (paper section 3.2); None without a lead.
    """

    task: EvalSet
    gain: stats.Paired | None
    lead: stats.Paired | None
    recovery: Estimate | None

    @property
    def first_step(self) -> int:
        """Step of the first evaluation; above 0 for a set that was changed on resume."""
        return self.task.student[0].step

    @property
    def first(self) -> str:
        """What the first evaluation is of, in words."""
        return f"at step {self.first_step}" if self.first_step else "before"

    @property
    def before(self) -> Estimate:
        """Accuracy of the student before training, or at `first_step`."""
        return self.task.student[0].accuracy

    @property
    def after(self) -> Estimate:
        """Accuracy of the student that the run keeps."""
        return self.task.final.accuracy


def outcome(task: EvalSet) -> Outcome | None:
    """The outcome on a set; None when the student was never evaluated on it."""
    if not task.student:
        return None
    before, final, teacher = task.student[0], task.final, task.teacher
    gain = lead = recovery = None
    if before.step < final.step:
        gain = stats.paired(before.per_prompt, final.per_prompt)
    if teacher is not None:
        lead = stats.paired(before.per_prompt, teacher.per_prompt)
        if gain is not None and lead.difference.value > 0:
            recovery = stats.gap_recovery(before.per_prompt, final.per_prompt, teacher.per_prompt)
    return Outcome(task, gain, lead, recovery)


def samples_text(task: EvalSet) -> str:
    """How many samples per prompt."""
    n = task.settings.get("n")
    return "1 sample each" if n == 1 else f"{n} samples each"
