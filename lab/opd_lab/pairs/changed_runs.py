"""Runs with the change that `opd check` advised: did they do what it predicted?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opd.core.stats import Estimate
from opd.recipes.check.verdict import CHANGES
from opd_lab.pairs.judging import Case, is_worth_a_run
from opd_lab.pairs.records import Outcome


@dataclass(frozen=True)
class ChangedRun:
    """A run that was judged "go with changes".

    Attributes:
        case: the run as it was configured.
        change: what to set, as on the command line.
        effect: predicted change of accuracy by the changed run.
        outcome: of that run; None: none was made.
    """

    case: Case
    change: str
    effect: Estimate
    outcome: Outcome | None

    @property
    def right(self) -> bool | None:
        """Whether the changed run was right to call a go; None if none was made."""
        return None if self.outcome is None else is_worth_a_run(self.outcome)

    @property
    def inside(self) -> bool | None:
        """Whether its outcome lies in the predicted 90 % interval."""
        if self.outcome is None:
            return None
        return self.effect.low <= self.outcome.change <= self.effect.high


def changed_runs(cases: Sequence[Case]) -> list[ChangedRun]:
    """The runs that were judged "go with changes", with what the changed run did.

    A training that was evaluated on its way is a run of each of those lengths, so that advice to
    run longer has been followed where the training went as far.

    Args:
        cases: with every length of each training.
    """
    by_length = {(c.outcome.training, c.outcome.run.steps): c.outcome for c in cases}
    changed = []
    for case in cases:
        if case.verdict != CHANGES:
            continue
        (advice,) = case.changes
        assert advice.effect is not None
        ((key, value),) = advice.set.items()
        steps = int(value) if key == "train.steps" else -1
        outcome = by_length.get((case.outcome.training, steps))
        changed.append(ChangedRun(case, f"{key}={value:g}", advice.effect, outcome))
    return changed


def followed(changed: Sequence[ChangedRun]) -> list[ChangedRun]:
    """Those whose changed run was made; each such run once, of the shortest run."""
    made: dict[tuple[tuple[str, int], int], ChangedRun] = {}
    for run in sorted(changed, key=lambda r: r.case.outcome.run.steps):
        if run.outcome is not None:
            made.setdefault((run.outcome.training, run.outcome.run.steps), run)
    return list(made.values())
