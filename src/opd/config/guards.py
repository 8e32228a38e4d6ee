"""Sections that guard a run while it goes on: alarms and horizon."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from opd.config.section import Section

AlarmAction = Literal["off", "warn", "act", "stop"]
AlarmName = Literal[
    "overlap-stagnating",
    "overlap-mass-falling",
    "support-mass-draining",
    "entropy-gap-open",
    "entropy-collapse",
    "diversity-falling",
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
    """warn: say and record. act: also change what the rule can change (a tail bucket, a shorter
    horizon). stop: end the run and keep the student of the best held-out accuracy."""
    rules: dict[AlarmName, AlarmRule] = {}
    """Rules that differ, by name."""

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
    a token weighs clip(1 - drop N, 0, 1) + base.
    """

    k: int = Field(16, ge=1)
    """Top tokens that are compared; at most loss.k."""
    measure: Literal["ratio", "mass"] = "ratio"
    """ratio: shared tokens / k; mass: the student's probability on them, steadier for small k."""
    threshold: float = Field(0.9, gt=0, le=1)
    """Published default; its users also run 0.7."""
    drop: float = Field(0.02, gt=0, le=1)
    """Published default: the fiftieth bad position is the last that counts. Its users also 0.01."""
    base: float = Field(0.0, ge=0, le=1)
    """Weight that remains; published default 0."""
    adapt: bool = True
    """Let the cap follow: no rollout is written further than where nearly all have died."""
    quantile: float = Field(0.9, gt=0, le=1)
    """Share of rollouts that must be dead or done at the cap."""
    growth: float = Field(1.25, gt=1)
    """Factor by which the cap grows while rollouts are cut alive."""
    tail: Literal["drop", "outcome"] = "drop"
    """outcome: as weight leaves the distillation it goes to loss.terms.outcome_weight."""

    @model_validator(mode="after")
    def _coherent(self) -> Prune:
        if self.tail == "outcome" and self.adapt:
            raise ValueError(
                "horizon.prune.tail=outcome learns from what is beyond the horizon, which "
                "horizon.prune.adapt=true does not write. Set horizon.prune.adapt=false"
            )
        if self.adapt and self.base > 0:
            raise ValueError(
                f"horizon.prune.base={self.base} gives every token some weight, and "
                "horizon.prune.adapt=true does not write them all. Set one of them to 0 or false"
            )
        return self


class Horizon(Section):
    """How far along a completion the student is taught; docs/horizon.md."""

    cap: int | None = Field(None, ge=1)
    """Most tokens a training rollout may have, whatever else. Evaluation is not cut."""
    grow: Grow | None = None
    prune: Prune | None = None
    least: int = Field(16, ge=1)
    """No cap that follows the overlap, or an alarm, goes below this."""
