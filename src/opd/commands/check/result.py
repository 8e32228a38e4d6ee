"""What a check found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from opd.commands.check.candidates import Candidate
from opd.core.stats import Estimate
from opd.recipes.check.cost import Plan
from opd.recipes.check.forecast import Prospect
from opd.recipes.check.probe import Against, Own
from opd.recipes.check.verdict import Advice, Reason, Verdict


@dataclass(frozen=True)
class Found:
    """What the check found about one teacher."""

    who: Candidate
    verdict: Verdict
    numbers: dict[str, Estimate] = field(default_factory=dict)
    against: Against | None = None
    prospect: Prospect | None = None
    reasons: Sequence[Reason] = ()
    advice: Sequence[Advice] = ()


@dataclass(frozen=True)
class Checked:
    """A whole check: teachers, best first, and the cost of a run with the best."""

    file: str
    found: Sequence[Found]
    own: Own | None
    plan: Plan | None
    examples: Sequence[dict[str, str]]
    lost: Sequence[str]
    seconds: float
