"""Rules applied step by step: an alarm is raised once, when its condition begins to hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from opd.alarms.history import History
from opd.alarms.rules import RULES, Evidence, Rule
from opd.config import AlarmAction, Alarms
from opd.run.preflight import ON_POLICY

HOLD = 2  # successive steps a condition must hold


@dataclass(frozen=True)
class Alarm:
    """One line of alarms.jsonl.

    Attributes:
        step: optimizer steps made when it was raised.
        name: of its rule.
        message: what is happening.
        evidence: the numbers that show it.
        remedy: what helps.
        action: what the run does about it: `warn`, `stop`, or what it changed.
    """

    step: int
    name: str
    message: str
    evidence: Evidence
    remedy: str
    action: str

    def record(self) -> dict[str, Any]:
        """For alarms.jsonl."""
        return asdict(self)


def window_of(settings: Alarms, planned: int) -> int:
    """Steps a window: a tenth of the run, at least four, unless `alarms.window` says otherwise."""
    return max(4, planned // 10) if settings.window == "auto" else settings.window


class Watch:
    """The rules of a run and what they have seen."""

    def __init__(self, settings: Alarms, planned: int) -> None:
        """Watch a run of `planned` steps."""
        self.settings = settings
        self.history = History(window_of(settings, planned))
        self._held: dict[str, int] = {}  # steps a rule's condition has held
        self._quiet: dict[str, int] = {}  # steps in a row it has not

    def see(self, row: Mapping[str, Any]) -> None:
        """Take in a row of metrics.jsonl; those of a cold start are not this phase's."""
        if "phase" not in row:
            self.history.add(row)

    def begin_anew(self) -> None:
        """Forget what was before a cold start: trends are those of the student it has left."""
        self.history = History(self.history.window)
        self._held, self._quiet = {}, {}

    def action(self, rule: Rule) -> AlarmAction:
        """What is configured for a rule."""
        own = self.settings.rules.get(rule.name)
        return self.settings.action if own is None or own.action is None else own.action

    def raised(self, step: int) -> list[tuple[Rule, Alarm]]:
        """Alarms that begin at `step`, all of whose rows have been seen."""
        found = []
        for rule in RULES:
            action = self.action(rule)
            if action == "off":
                continue
            evidence = rule.find(self.history, self.threshold(rule))
            if self._begins(rule.name, evidence is not None) and evidence is not None:
                alarm = Alarm(step, rule.name, rule.says, evidence, rule.remedy, action)
                found.append((rule, alarm))
        return found

    def _begins(self, name: str, holds: bool) -> bool:
        """Whether a condition has just held long enough; it must be gone a window to begin anew."""
        self._quiet[name] = 0 if holds else self._quiet.get(name, 0) + 1
        if self._quiet[name] >= (self.history.window if self._held.get(name, 0) >= HOLD else 1):
            self._held[name] = 0
        self._held[name] = self._held.get(name, 0) + holds
        return holds and self._held[name] == HOLD

    def threshold(self, rule: Rule) -> float:
        """The number that decides a rule."""
        own = self.settings.rules.get(rule.name)
        return rule.threshold if own is None or own.threshold is None else own.threshold

    def catch_up(self, rows: Iterable[Mapping[str, Any]]) -> list[Alarm]:
        """Go through the rows of earlier steps; returns the alarms they raised."""
        found: list[Alarm] = []
        for step, same in groupby(rows, key=lambda row: int(row["step"])):
            for row in same:
                if row.get("phase") == ON_POLICY:
                    found += [alarm for _, alarm in self.raised(step)]
                    self.begin_anew()
                self.see(row)
            found += [alarm for _, alarm in self.raised(step)]
        return found


def replay(rows: Iterable[Mapping[str, Any]], settings: Alarms, planned: int) -> list[Alarm]:
    """The alarms a finished run raises, from its metrics alone: nothing is run again.

    Args:
        rows: of metrics.jsonl, in order.
        settings: rules and thresholds.
        planned: steps the run was configured for; decides the window.
    """
    return Watch(settings, planned).catch_up(rows)
