"""Sections that guard a run while it goes on: alarms and horizon."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from opd.config.section import Section

AlarmAction = Literal["off", "warn"]
AlarmName = Literal[
    "overlap-stagnating",
    "overlap-mass-falling",
    "support-mass-draining",
    "entropy-gap-open",
    "entropy-collapse",
    "late-spike",
    "length-inflation",
    "repetition",
    "truncation",
    "nothing-to-learn",
    "drift",
    "reverse-distillation",
    "accuracy-falling",
]


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
    """warn: say and record."""
    window: int | Literal["auto"] = "auto"
    """Steps that are averaged before they are compared. auto: a tenth of the run, at least 4."""
    rules: dict[AlarmName, AlarmRule] = {}
    """Rules that differ, by name."""
