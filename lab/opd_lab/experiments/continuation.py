"""E9: what the teacher can still rescue, by length of the student's prefix."""

from __future__ import annotations

from dataclasses import dataclass

from opd_lab.checkpoints import LEDGER
from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Curve,
    Experiment,
    Measurement,
    keyed_columns,
)
from opd_lab.experiments.setups import Setup
from opd_lab.experiments.workspace import Workspace
from opd_lab.runs import Task

STEP_TOKENS = 3  # of a chain of thought of the chain world
LEDGER_PAIR = ("ledger-base", "ledger-clean")
DRAFT = 3 * LEDGER.depth  # tokens of the ledger's draft; its check has 2 per entry, and a word
LEDGER_CUTS = {
    "start": 0,
    "half draft": 6,
    "draft": DRAFT,
    "check 1": DRAFT + 3,
    "check 2": DRAFT + 5,
    "check 4": DRAFT + 2 * LEDGER.depth + 1,
}


@dataclass(frozen=True)
class Numbers:
    """One seed.

    Attributes:
        gain: continuation gain by reasoning steps of the prefix.
        repairable: by part of the ledger's completion, in the full setup only.
    """

    gain: list[float]
    repairable: dict[str, float]


def continuation(setup: Setup) -> Experiment[Numbers]:
    """See the module."""
    depth = setup.task.world.depth

    def measure(workspace: Workspace) -> Measurement[Numbers]:
        cuts = [STEP_TOKENS * d for d in range(depth + 1)]
        gain = workspace.continuation_gains(setup.base, setup.large_improved, setup.task, cuts)
        depths = [float(d) for d in range(depth + 1)]
        curves = [Curve("continuation gain, errors final", "same pattern", depths, gain)]
        repairable = {}
        if not setup.quick:
            cuts = [*LEDGER_CUTS.values()]
            gains = workspace.continuation_gains(*LEDGER_PAIR, Task(LEDGER), cuts)
            repairable = dict(zip(LEDGER_CUTS, gains, strict=True))
            panel = "continuation gain, errors can be repaired (ledger)"
            curves.append(Curve(panel, "same pattern", [*map(float, cuts)], gains))
        return Measurement(Numbers(gain, repairable), curves)

    return Experiment(
        "E9",
        "Continuation gain by prefix depth",
        f"{setup.large_improved} continues prefixes of {setup.base}'s rollouts, minus {setup.base} "
        "continuing the same prefixes. Varied: reasoning steps in the prefix"
        + ("." if setup.quick else "; and whether errors can be repaired (the ledger world)."),
        "+.366 (1K), +.271 (4K), +.152 (8K), +.024 (16K tokens)",
        Numbers,
        measure,
        (FALLING,) if setup.quick else (FALLING, REPAIRABLE),
        columns(depth, quick=setup.quick),
    )


def columns(depth: int, *, quick: bool) -> tuple[Column[Numbers], ...]:
    """Gain by depth, and in the ledger world."""
    labels = {0: "gain at depth 0"} | {d: str(d) for d in range(1, depth + 1)}
    by_depth: tuple[Column[Numbers], ...] = keyed_columns(labels, lambda n: dict(enumerate(n.gain)))
    return by_depth if quick else by_depth + REPAIRABLE_COLUMNS


REPAIRABLE_COLUMNS: tuple[Column[Numbers], ...] = keyed_columns(
    {
        "start": "repairable errors: at the start",
        "draft": "after the draft",
        "check 2": "half-way through the check",
        "check 4": "after it",
    },
    lambda n: n.repairable,
)
FALLING: Claim[Numbers] = Claim(
    "the gain starts at .4 or more and falls with every step (tolerance .03), to .05 or less",
    lambda n: (
        n.gain[0] >= 0.4
        and all(b <= a + 0.03 for a, b in zip(n.gain, n.gain[1:], strict=False))
        and n.gain[-1] <= 0.05
    ),
)
REPAIRABLE: Claim[Numbers] = Claim(
    "where errors can be repaired, the gain survives the whole draft (.8 of it) and falls in the "
    "check, to .05 or less",
    lambda n: (
        n.repairable["draft"] >= 0.8 * n.repairable["start"] and n.repairable["check 4"] <= 0.05
    ),
)
