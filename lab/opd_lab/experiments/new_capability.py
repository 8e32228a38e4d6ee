"""E2: teachers that have something to teach the student, against those that only seem to.

A teacher of the same data is no better than the base, so nothing can come of it. The paper's point
is another one: a teacher that *leads* and teaches nothing. Two are built here, whose lead is on
states of their own that the student never comes to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Experiment,
    Measurement,
    keyed_columns,
    metric_curves,
)
from opd_lab.experiments.setups import ACCURACY, OVERLAP, REVERSE_KL, Setup
from opd_lab.experiments.workspace import Workspace
from opd_lab.runs import RunResult

HALF_IMPROVED = "chain-half-rl"
IMPROVED, SAME_DATA, OPENING, TWO_WAYS = (
    "improved",
    "same data",
    "right after an opening",
    "right in the other pattern",
)
LEADERS = (OPENING, TWO_WAYS)  # ahead, and not where the student is
PANELS = {ACCURACY: "accuracy", REVERSE_KL: "reverse KL", OVERLAP: "overlap ratio, k = 16"}


@dataclass(frozen=True)
class Pair:
    """One teacher and what came of it.

    Attributes:
        lead: teacher minus student accuracy, each on its own answers.
        gain: what the student's accuracy changed by.
        overlap: overlap ratio at k = 16 at the start.
        kl: reverse KL at the start.
    """

    lead: float
    gain: float
    overlap: float
    kl: float

    @property
    def recovery(self) -> float:
        """Fraction of the lead that the student took over."""
        return self.gain / self.lead


@dataclass(frozen=True)
class Numbers:
    """One seed: pairs by teacher."""

    pairs: dict[str, Pair]
    half_improved: dict[str, float]  # accuracy of such a teacher and of its student; full setup


def new_capability(setup: Setup) -> Experiment[Numbers]:
    """See the module."""
    teachers = {
        IMPROVED: setup.large_improved,
        SAME_DATA: setup.large,
        OPENING: setup.opening,
        TWO_WAYS: setup.two_ways,
    }

    def measure(workspace: Workspace) -> Measurement[Numbers]:
        before = workspace.accuracy(setup.base)
        results: dict[str, RunResult] = {}
        pairs: dict[str, Pair] = {}
        for name, teacher in teachers.items():
            result = results[name] = workspace.run(setup.arm(setup.base, teacher), setup.task)
            pairs[name] = Pair(
                lead=workspace.accuracy(teacher) - before,
                gain=result.accuracy() - result.initial_accuracy(),
                overlap=result.first(OVERLAP),
                kl=result.first(REVERSE_KL),
            )
        half_improved = {}
        if not setup.quick:
            arm = setup.arm(setup.base, HALF_IMPROVED)
            result = results["half-improved"] = workspace.run(arm, setup.task)
            half_improved["teacher"] = workspace.accuracy(HALF_IMPROVED)
            half_improved["student"] = result.accuracy()
        return Measurement(Numbers(pairs, half_improved), metric_curves(results, PANELS))

    return Experiment(
        "E2",
        "New capability",
        f"{setup.base} learns from {setup.large_improved} (improved), {setup.large} (same data, "
        f"larger), {setup.opening} (right after an opening that the student never writes, else as "
        f"wrong as the base) and {setup.two_ways} (right in the other pattern, as wrong as the "
        "base in the student's). Varied: what the teacher has learned, and where it shows.",
        "gap recovery 5.3 % against 16.9 % (initial overlap 74.2 % and 71.5 %); 15.6 % against "
        "58.6 % (75.7 % and 70.3 %)",
        Numbers,
        measure,
        CLAIMS,
        COLUMNS if setup.quick else COLUMNS + HALF_COLUMNS,
        "The larger same-data model is no better than the base, so there is nothing to gain from "
        "it: a small loss here means that the teacher adds nothing. The other two are ahead "
        "by construction of their corpora, and what their students gain is measured.",
    )


def _least(value: Callable[[Pair], float]) -> Callable[[Numbers], float]:
    return lambda n: min(value(n.pairs[name]) for name in LEADERS)


def _most(value: Callable[[Pair], float]) -> Callable[[Numbers], float]:
    return lambda n: max(value(n.pairs[name]) for name in LEADERS)


CLAIMS: tuple[Claim[Numbers], ...] = (
    Claim(
        "two teachers lead by .3 or more, and their students recover less than a fifth of it",
        lambda n: _least(lambda p: p.lead)(n) >= 0.3 and _most(lambda p: p.recovery)(n) < 0.2,
    ),
    Claim(
        "the improved teacher's lead is recovered by .8 or more",
        lambda n: n.pairs[IMPROVED].recovery >= 0.8,
    ),
    Claim(
        "the same-data teacher, which does not lead, changes accuracy by at most .06",
        lambda n: abs(n.pairs[SAME_DATA].gain) <= 0.06,
    ),
    Claim(
        "initial overlap is no lower with the same-data teacher than with the improved one",
        lambda n: n.pairs[SAME_DATA].overlap >= n.pairs[IMPROVED].overlap - 0.01,
    ),
)


def _columns(name: str) -> tuple[Column[Numbers], ...]:
    """Lead, gain, overlap and KL of one teacher."""
    values: tuple[tuple[str, Callable[[Pair], float]], ...] = (
        ("lead of the teacher", lambda p: p.lead),
        ("gain of the student", lambda p: p.gain),
        ("initial overlap, k = 16", lambda p: p.overlap),
        ("initial reverse KL", lambda p: p.kl),
    )
    return tuple(
        Column(f"{name}: {label}", lambda n, value=value: value(n.pairs[name]))  # type: ignore[misc]
        for label, value in values
    )


COLUMNS: tuple[Column[Numbers], ...] = tuple(
    column for name in (IMPROVED, SAME_DATA, *LEADERS) for column in _columns(name)
)
HALF_COLUMNS: tuple[Column[Numbers], ...] = keyed_columns(
    {"teacher": "accuracy of a half-improved teacher", "student": "its student"},
    lambda n: n.half_improved,
)
