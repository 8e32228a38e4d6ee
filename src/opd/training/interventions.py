"""What a run can do about an alarm by itself: a tail bucket, a shorter horizon, a cold start."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from opd.alarms import Alarm, Rule
from opd.core.objective import Objective
from opd.training.horizon import Horizon
from opd.types import Kind

NOTHING = "warn: there is nothing a run can do about it by itself"
SHORTER = 0.7  # of the limit, where the alarm names no position
ColdStart = Literal["never", "ready", "due", "made", "failed"]
BEGINS = "a cold start begins before the next step"


@dataclass(frozen=True)
class Course:
    """What may change while a run goes on: how far it teaches, and what it minimises.

    Attributes:
        horizon: limit of the next rollouts.
        objective: loss of the next steps.
        kinds: what the teacher can give; None without a teacher.
        tail: an alarm has added the tail bucket.
        cold_start: `ready` if an alarm may begin one (coldstart.when), `due` when one has, then
            `made`, or `failed` when it found nothing to imitate.
    """

    horizon: Horizon
    objective: Objective
    kinds: frozenset[Kind] | None
    tail: bool = False
    cold_start: ColdStart = "never"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        kept = {"horizon": self.horizon.state(), "tail": self.tail}
        return kept if self.cold_start == "never" else kept | {"cold_start": self.cold_start}

    def restored(self, state: dict[str, Any]) -> Course:
        """The inverse of `state`; `{}` is a run that has not begun."""
        if "horizon" not in state:
            return self
        course = replace(
            self,
            horizon=self.horizon.restored(state["horizon"]),
            cold_start=state.get("cold_start", self.cold_start),
        )
        return course.with_tail() if state["tail"] else course

    def with_tail(self) -> Course:
        """The same with `loss.mode: tail`."""
        return replace(self, objective=replace(self.objective, mode="tail"), tail=True)

    def answer(self, rule: Rule, alarm: Alarm, step: int) -> tuple[Course, str]:
        """Act on an alarm that came after `step` updates.

        Returns:
            The new course, and what was done in words: the action of alarms.jsonl.
        """
        for act in rule.interventions:
            if act == "cold start" and self.cold_start in ("ready", "due"):
                return replace(self, cold_start="due"), BEGINS
            if act == "tail" and self._can_have_tail():
                return self.with_tail(), "loss.mode is tail from the next step on"
            if act == "cap":
                now = self.horizon.limit(step)
                to = int(alarm.evidence.get("position", now * SHORTER))
                shorter = self.horizon.shortened(min(to, now))
                if shorter.limit(step) < now:
                    words = f"rollouts end after {shorter.limit(step)} tokens from the next step on"
                    return replace(self, horizon=shorter), words
        return self, NOTHING

    def _can_have_tail(self) -> bool:
        """Whether the loss has a support with an outside, and the teacher normalises its scores."""
        o = self.objective
        if self.kinds is None or o.mode == "tail" or o.support in ("full", "sampled"):
            return False
        if o.reward_scale != 1 or o.normalize:
            return False
        return Kind.SAMPLED in self.kinds or o.support == "teacher_topk"
