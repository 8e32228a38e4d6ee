"""Sections that guard a run while it goes on: alarms and horizon."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from opd.config.section import Section

AlarmAction = Literal["off", "warn", "act", "stop"]
AlarmName = Literal[
    "overlap-stagnating",
    "overlap-mass-falling",
    "support-mass-draining",
    "teacher-off-support",
    "entropy-gap-open",
    "entropy-collapse",
    "diversity-falling",
    "late-spike",
    "length-inflation",
    "repetition",
    "truncation",
    "nothing-to-learn",
    "drift",
    "stale-rollouts",
    "hint-leaking",
    "responses-alike",
    "reverse-distillation",
    "accuracy-falling",
    "forgetting",
]


# Alarms about a student that is too far from its teacher.
COLD_START_ALARMS: tuple[AlarmName, ...] = (
    "overlap-stagnating",
    "overlap-mass-falling",
    "teacher-off-support",
    "entropy-gap-open",
)


def _off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class AlarmRule(Section):
    """What differs for one rule."""

    action: Annotated[AlarmAction | None, BeforeValidator(_off)] = None
    """null: as alarms.action."""
    threshold: float | None = Field(None, gt=0)
    """null: the rule's own; docs/alarms.md says what it is."""


class Alarms(Section):
    """Rules over the metrics of the run; docs/alarms.md."""

    action: Annotated[AlarmAction, BeforeValidator(_off)] = "warn"
    """warn: say and record. act: also change what the rule can change (a tail bucket, a shorter
    horizon). stop: end the run and keep the student of the best held-out accuracy."""
    rules: dict[AlarmName, AlarmRule] = {}
    """Rules that differ, by name."""

    python: list[str] = []
    """Rules of your own, as pkg.mod:RULE (an `opd.alarms.Rule`, or several) or entry points of
    opd.alarms."""

    @property
    def may_stop(self) -> bool:
        """Whether some rule may end the run, so that the best student must be kept."""
        return "stop" in (self.action, *(rule.action for rule in self.rules.values()))


class Grow(Section):
    """A horizon that grows with training: short responses first."""

    start: int = Field(ge=1)
    """Tokens a rollout at the first step."""
    until: int = Field(ge=1)
    """Step at which it has grown, in a straight line, to the longest."""


class Prune(Section):
    """Tokens lose weight as the overlap dies (Prune-OPD, arXiv 2605.07804).

    A position is bad where the overlap of both top k is below the threshold; after N bad positions
    a token weighs clip(1 - 0.02 N, 0, 1).
    """

    threshold: float = Field(0.9, gt=0, le=1)
    """Published default; its users also run 0.7."""


class Horizon(Section):
    """How far along a completion the student is taught; docs/horizon.md."""

    cap: int | None = Field(None, ge=1)
    """Most tokens a training rollout may have, whatever else. Evaluation is not cut."""
    grow: Grow | None = None
    """null: rollouts have their full length from the first step."""
    prune: Prune | None = None
    """null: every token counts alike. {}: Prune-OPD with every default."""
