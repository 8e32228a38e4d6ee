"""What watches over a run and may change its course: alarms, horizon, the best student so far.

Everything it knows is a function of the configuration, the metrics and the rollouts so far; what
cannot be read back from the metrics is in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from opd.alarms import Alarm, Monitor
from opd.core.batch import Batch
from opd.run.console import Console
from opd.run.folder import RunFolder
from opd.run.trackers import Trackers
from opd.training.interventions import Course

BEST = "best"  # folder of the best student so far, kept from pruning


@dataclass
class Guard:
    """The guard of one run.

    Attributes:
        monitor: the alarm rules applied to the metrics so far.
        course: what may change while the run goes on.
        folder: where alarms are written.
        console: where they are said.
        trackers: where they are sent.
        best: step and held-out accuracy of the best student; None before an evaluation.
        stopped: the alarm that ended the run; None while it goes on.
    """

    monitor: Monitor
    course: Course
    folder: RunFolder
    console: Console
    trackers: Trackers
    best: tuple[int, float] | None = None
    stopped: Alarm | None = None

    def catch_up(self, facts: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
        """Be where a checkpoint with these facts was; `rows` are those of its metrics.jsonl."""
        earlier = self.monitor.replay(rows)
        self.course = self.course.restored(facts.get("course", {}))
        self.best = tuple(facts["best"]) if facts.get("best") else None
        self.stopped = next((alarm for alarm in earlier if alarm.action == "stop"), None)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"course": self.course.state(), "best": self.best}

    def learn(self, batch: Batch, limit: int) -> None:
        """Let the horizon follow a batch that was written under `limit`."""
        horizon = self.course.horizon.after(batch, limit)
        self.course = replace(self.course, horizon=horizon)

    def better(self, step: int, accuracy: float) -> bool:
        """Note a held-out accuracy; whether it is the best so far, to be kept."""
        if self.best is not None and accuracy <= self.best[1]:
            return False
        self.best = (step, accuracy)
        return self.monitor.settings.may_stop

    def check(self, step: int) -> None:
        """Record, say and answer what the rules find after `step` updates."""
        for rule, alarm in self.monitor.check(step):
            if alarm.action == "act":
                self.course, done = self.course.answer(rule, alarm, step)
                alarm = replace(alarm, action=done)
            if alarm.action == "stop":
                self.stopped = self.stopped or alarm
            self.folder.alarm(alarm.record())
            self.console.alarm(alarm.record())
            self.trackers.log(step, {f"alarm/{alarm.name}": 1.0})
