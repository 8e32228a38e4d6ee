"""What an alarm may change in a run: a tail bucket, a shorter horizon, a cold start, its end.

Everything here is a function of the configuration, the metrics and the rollouts so far; what cannot
be read back from the metrics is in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from opd.alarms import Alarm, Monitor, Rule
from opd.core.batch import Batch
from opd.core.objective import Objective
from opd.run.console import Console
from opd.run.folder import RunFolder
from opd.run.trackers import Trackers
from opd.training.horizon import Horizon
from opd.types import Kind

NO_ACTION = "warn: there is nothing a run can do about it by itself"
SHORTENING = 0.7  # of the limit, where the alarm names no position
COLD_START_BEGINS = "a cold start begins before the next step"
ColdStart = Literal["never", "ready", "due", "made", "failed"]


@dataclass(frozen=True)
class Adjustable:
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

    def restore(self, state: Mapping[str, Any]) -> Adjustable:
        """The inverse of `state`; `{}` is a run that has not begun."""
        if "horizon" not in state:
            return self
        restored = replace(
            self,
            horizon=self.horizon.restore(state["horizon"]),
            cold_start=state.get("cold_start", self.cold_start),
        )
        return restored.with_tail() if state["tail"] else restored

    def with_tail(self) -> Adjustable:
        """The same with `loss.mode: tail`."""
        return replace(self, objective=replace(self.objective, mode="tail"), tail=True)

    def act_on(self, rule: Rule, alarm: Alarm, step: int) -> tuple[Adjustable, str]:
        """Act on an alarm that came after `step` updates.

        Returns:
            What holds from now on, and what was done: the action of alarms.jsonl.
        """
        for act in rule.interventions:
            if act == "cold start" and self.cold_start in ("ready", "due"):
                return replace(self, cold_start="due"), COLD_START_BEGINS
            if act == "tail" and self._can_have_tail():
                return self.with_tail(), "loss.mode is tail from the next step on"
            if act == "cap":
                limit = self.horizon.limit(step)
                target = int(alarm.evidence.get("position", limit * SHORTENING))
                shorter = self.horizon.shorten(min(target, limit))
                if shorter.limit(step) < limit:
                    done = f"rollouts end after {shorter.limit(step)} tokens from the next step on"
                    return replace(self, horizon=shorter), done
        return self, NO_ACTION

    def _can_have_tail(self) -> bool:
        """Whether the loss has a support with an outside, and the teacher normalises its scores."""
        o = self.objective
        if self.kinds is None or o.mode == "tail" or o.support in ("full", "sampled"):
            return False
        if o.reward_scale != 1 or o.normalize:
            return False
        return Kind.SAMPLED in self.kinds or o.support == "teacher_topk"


@dataclass
class Interventions:
    """The alarms of one run and what they have changed.

    Attributes:
        monitor: the alarm rules applied to the metrics so far.
        adjustable: what holds at the moment.
        folder: where alarms are written.
        console: where they are shown.
        trackers: where they are sent.
        keeps_best: whether the best student is kept although no alarm may stop the run.
        best: step and held-out accuracy of the best student; None before an evaluation.
        stopped_by: the alarm that ended the run; None while it goes on.
    """

    monitor: Monitor
    adjustable: Adjustable
    folder: RunFolder
    console: Console
    trackers: Trackers
    best: tuple[int, float] | None = None
    stopped_by: Alarm | None = None
    keeps_best: bool = False

    def restore(
        self, state: Mapping[str, Any], rows: Iterable[Mapping[str, Any]], step: int
    ) -> None:
        """Be where a checkpoint was.

        An alarm ends a run at its own step: one that only warned, before `alarms` was changed, or
        after which the run was resumed, ends nothing.

        Args:
            state: of the checkpoint.
            rows: of its metrics.jsonl.
            step: updates made before it.
        """
        self.monitor.reset()
        earlier = self.monitor.replay(rows)
        self.adjustable = self.adjustable.restore(state.get("course", {}))
        self.best = tuple(state["best"]) if state.get("best") else None
        ending = (alarm for alarm in earlier if alarm.action == "stop" and alarm.step == step)
        self.stopped_by = next(ending, None)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"course": self.adjustable.state(), "best": self.best}

    def limit(self, step: int) -> int:
        """Tokens a rollout of the step after `step` updates may have."""
        return self.adjustable.horizon.limit(step)

    def observe(self, batch: Batch, limit: int) -> None:
        """Let the horizon follow a batch that was sampled under `limit`."""
        horizon = self.adjustable.horizon.after(batch, limit)
        self.adjustable = replace(self.adjustable, horizon=horizon)

    def record_accuracy(self, step: int, accuracy: float) -> bool:
        """Note a held-out accuracy; whether this student must be kept as the best so far."""
        if self.best is not None and accuracy <= self.best[1]:
            return False
        self.best = (step, accuracy)
        return self.keeps_best or self.monitor.settings.may_stop

    def check(self, step: int) -> None:
        """Record, show and act on what the rules find after `step` updates."""
        for rule, alarm in self.monitor.check(step):
            if alarm.action == "act":
                self.adjustable, done = self.adjustable.act_on(rule, alarm, step)
                alarm = replace(alarm, action=done)
            if alarm.action == "stop":
                self.stopped_by = self.stopped_by or alarm
            self.folder.log_alarm(alarm.record())
            self.console.show_alarm(alarm.record())
            self.trackers.log(step, {f"alarm/{alarm.name}": 1.0})

    def set_cold_start(self, status: Literal["made", "failed"]) -> None:
        """Note what became of the cold start that an alarm asked for."""
        self.adjustable = replace(self.adjustable, cold_start=status)
        if status == "made":
            self.monitor.reset()

    @property
    def cold_start_due(self) -> bool:
        """Whether an alarm has asked for a cold start that has not been made."""
        return self.adjustable.cold_start == "due"
