"""Applying the rules step by step: an alarm is raised once, when its condition begins to hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from opd.alarms.conditions import Evidence
from opd.alarms.history import History
from opd.alarms.rules import RULES, Rule
from opd.config import AlarmAction, AlarmRule, Alarms
from opd.run.layout import ON_POLICY

# A tenth of the run averages most of the noise away and leaves time to act; below four steps the
# noise of a window cannot be estimated.
WINDOWS, MIN_WINDOW = 10, 4
TEACHER = "teachers/"  # begins the names of metrics of one of several teachers
HOLD_STEPS = 2  # successive steps a condition must hold


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


def window_size(planned: int) -> int:
    """Steps in a window of a run of `planned` steps."""
    return max(MIN_WINDOW, planned // WINDOWS)


class Monitor:
    """The rules applied to the metrics of one run.

    Attributes:
        settings: actions and thresholds.
        rules: what is looked for.
        history: the metrics so far.
    """

    def __init__(
        self, settings: Alarms, planned: int, *, rules: Sequence[Rule] | None = None
    ) -> None:
        """Monitor a run of `planned` steps by `rules`; None: those of opd alone."""
        self.settings, self.rules = settings, RULES if rules is None else rules
        self.history = History(window_size(planned))
        self._steps_held: dict[str, int] = {}  # steps for which a rule's condition has held
        self._steps_quiet: dict[str, int] = {}  # successive steps for which it has not
        self._planned = planned
        self._teachers: dict[str, Monitor] = {}  # of several, each by its own metrics

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of metrics.jsonl; rows of a cold start are left out."""
        if "phase" in row:
            return
        self.history.add(row)
        for teacher, own in _by_teacher(row).items():
            if teacher not in self._teachers:
                self._teachers[teacher] = Monitor(self.settings, self._planned, rules=self.rules)
            self._teachers[teacher].history.add(own)

    def reset(self) -> None:
        """Forget everything before a cold start: trends are those of the student that it made."""
        self.history = History(self.history.window)
        self._steps_held, self._steps_quiet, self._teachers = {}, {}, {}

    def action(self, rule: Rule) -> AlarmAction:
        """The configured action of a rule."""
        override = self._override(rule)
        own = None if override is None else override.action
        if own is not None:
            return own
        general = self.settings.action
        return "warn" if general == "stop" and not rule.stops else general

    def _override(self, rule: Rule) -> AlarmRule | None:
        return next((own for name, own in self.settings.rules.items() if name == rule.name), None)

    def threshold(self, rule: Rule) -> float:
        """The configured threshold of a rule."""
        override = self._override(rule)
        own = None if override is None else override.threshold
        return rule.threshold if own is None else own

    def check(self, step: int) -> list[tuple[Rule, Alarm]]:
        """Apply the rules once all rows of `step` have been added; returns the new alarms."""
        alarms = []
        for rule in self.rules:
            action = self.action(rule)
            if action == "off":
                continue
            evidence = rule.condition(self.history, self.threshold(rule))
            if self._begins(rule.name, evidence is not None) and evidence is not None:
                message = rule.message_about(evidence.subject)
                alarm = Alarm(step, rule.name, message, evidence, rule.remedy, action)
                alarms.append((rule, alarm))
        for teacher, monitor in self._teachers.items():
            alarms += [(rule, _about(alarm, teacher)) for rule, alarm in monitor.check(step)]
        return alarms

    def _begins(self, name: str, holds: bool) -> bool:
        """Whether a condition has just held long enough.

        After an alarm, the condition must be false for a whole window before it can begin again.
        """
        held, quiet = self._steps_held, self._steps_quiet
        quiet[name] = 0 if holds else quiet.get(name, 0) + 1
        if quiet[name] >= (self.history.window if held.get(name, 0) >= HOLD_STEPS else 1):
            held[name] = 0
        held[name] = held.get(name, 0) + holds
        return holds and held[name] == HOLD_STEPS

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> list[Alarm]:
        """Add the rows of earlier steps, in order; returns the alarms they raise."""
        alarms: list[Alarm] = []
        for step, rows_of_step in groupby(rows, key=lambda row: int(row["step"])):
            for row in rows_of_step:
                if row.get("phase") == ON_POLICY:
                    alarms += [alarm for _, alarm in self.check(step)]
                    self.reset()
                self.add(row)
            alarms += [alarm for _, alarm in self.check(step)]
        return alarms


def _by_teacher(row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics of each of several teachers, under the names they have for one."""
    parts: dict[str, dict[str, Any]] = {}
    for key, value in row.items():
        if key.startswith(TEACHER):
            teacher, _, name = key.removeprefix(TEACHER).partition("/")
            parts.setdefault(teacher, {})[name] = value
    return parts


def _about(alarm: Alarm, teacher: str) -> Alarm:
    """An alarm about one of several teachers: it warns, for the run is that of all of them."""
    message = f"On the prompts of teacher {teacher}: {alarm.message[0].lower()}{alarm.message[1:]}"
    return replace(alarm, message=message, action="warn")


def replay(rows: Iterable[Mapping[str, Any]], settings: Alarms, planned: int) -> list[Alarm]:
    """The alarms of a finished run, from its metrics alone: nothing is run again.

    Args:
        rows: of metrics.jsonl, in order.
        settings: actions and thresholds.
        planned: steps the run was configured for; decides the window.
    """
    return Monitor(settings, planned).replay(rows)
