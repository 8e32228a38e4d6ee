"""The result of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from opd.commands.check.candidates import Candidate
from opd.core.stats import Estimate
from opd.recipes.check.advice import Advice
from opd.recipes.check.cost import RunCost
from opd.recipes.check.forecast import Forecast
from opd.recipes.check.probe import StudentSide, TeacherSide
from opd.recipes.check.reasons import Reason
from opd.recipes.check.verdict import Verdict


@dataclass(frozen=True)
class TeacherResult:
    """The verdict on one teacher; without features where it is incompatible."""

    candidate: Candidate
    verdict: Verdict
    features: dict[str, Estimate] = field(default_factory=dict)
    side: TeacherSide | None = None
    forecast: Forecast | None = None
    reasons: Sequence[Reason] = ()
    advice: Sequence[Advice] = ()


@dataclass(frozen=True)
class CheckResult:
    """A whole check.

    Attributes:
        file: of the configuration.
        teachers: best first.
        student: the student's half of the probe; None if no teacher is compatible.
        cost: of a run with the best teacher; None where no step was timed.
        examples: graded answers, where none was accepted.
        limitations: what could not be measured, and why.
        seconds: that the check took.
        interrupted: whether Ctrl-C ended it.
    """

    file: str
    teachers: Sequence[TeacherResult]
    student: StudentSide | None
    cost: RunCost | None
    examples: Sequence[dict[str, str]]
    limitations: Sequence[str]
    seconds: float
    interrupted: bool = False

    @property
    def best(self) -> TeacherResult:
        """The first of the teachers."""
        return self.teachers[0]
