"""Alarms and phases of a run, read from its journals.

A line of alarms.jsonl has `step`, `name` and `message`; `evidence`, `remedy` and `action` where the
rule has them. Other keys are shown as evidence. A line with a `phase`, there or in metrics.jsonl,
names the phase of the run that begins at its step. A run whose alarms were off has no lines: then
the same rules are replayed over its metrics.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from opd.alarms import replay
from opd.config import Alarms
from opd.reports.formatting import minus
from opd.run.jsonl import encode_line, flatten
from opd.run.layout import ON_POLICY

_KNOWN_KEYS = ("step", "name", "alarm", "message", "evidence", "remedy", "action", "phase")


@dataclass(frozen=True)
class AlarmText:
    """One alarm as text.

    Attributes:
        step: at which it was raised.
        name: of its rule.
        message: what is happening.
        evidence: the numbers that show it.
        remedy: what helps.
        action: `warn`, `stop`, or what the run changed.
    """

    step: int
    name: str
    message: str
    evidence: str = ""
    remedy: str = ""
    action: str = ""

    @property
    def intervention(self) -> str:
        """What the run did about it; empty if it only warned."""
        if self.action in ("", "none") or self.action.startswith("warn"):
            return ""
        return "stopped the run" if self.action == "stop" else self.action


def alarm_texts(records: Iterable[Mapping[str, Any]]) -> list[AlarmText]:
    """Every alarm of a journal by step; lines that only name a phase are left out."""
    alarms = [_alarm_text(r) for r in records if not is_phase(r)]
    return sorted(alarms, key=lambda alarm: alarm.step)


def replay_alarms(
    config: Mapping[str, Any], metrics: Iterable[Mapping[str, Any]], planned: int
) -> list[AlarmText] | None:
    """The alarms that the rules raise on the metrics of a run whose alarms were off.

    Args:
        config: of the run. Rules that it switched off by name stay off.
        metrics: rows of metrics.jsonl, in order.
        planned: steps the run was configured for.

    Returns:
        None for a run that monitored its alarms: what it recorded is complete.
    """
    try:
        settings = Alarms.model_validate(config.get("alarms", {"action": "off"}))
    except ValidationError:  # of a version with other rules
        settings = Alarms(action="off")
    if settings.action != "off":
        return None
    alarms = replay(metrics, settings.model_copy(update={"action": "warn"}), planned)
    return alarm_texts(json.loads(encode_line(alarm.record())) for alarm in alarms)


def is_phase(record: Mapping[str, Any]) -> bool:
    """Whether a line of the journal only says that a phase began."""
    return "phase" in record and not ({"name", "alarm", "message"} & record.keys())


def _alarm_text(record: Mapping[str, Any]) -> AlarmText:
    others = {k: v for k, v in record.items() if k not in _KNOWN_KEYS}
    evidence = [value_text(record.get("evidence")), value_text(others)]
    return AlarmText(
        int(record["step"]),
        value_text(record.get("name", record.get("alarm", "alarm"))),
        value_text(record.get("message")),
        ", ".join(filter(None, evidence)),
        value_text(record.get("remedy")),
        value_text(record.get("action")),
    )


def value_text(value: Any) -> str:
    """A JSON value as text; empty for null, {} and []."""
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, Mapping):
        flat = flatten(dict(value)).items()
        return ", ".join(f"{key} {value_text(each)}" for key, each in flat)
    if isinstance(value, list):
        return ", ".join(filter(None, map(value_text, value)))
    return minus(f"{value:.4g}") if isinstance(value, float) else str(value)


def first_steps(alarms: Sequence[AlarmText]) -> list[float]:
    """Steps at which an alarm began: of one that is raised at successive steps, the first."""
    raised = {(alarm.name, alarm.step) for alarm in alarms}
    return sorted({float(step) for name, step in raised if (name, step - 1) not in raised})


def phases(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """First step and name of every phase of a run, in order.

    Args:
        records: lines of the journals; those of one step in the order they were written.
    """
    named = [(float(r["step"]), str(r["phase"])) for r in records if "phase" in r]
    named.sort(key=lambda at: at[0])  # stable: lines of one step stay in the journal's order
    if named and any("phase" not in r and 0 < r["step"] < named[0][0] for r in records):
        named.insert(0, (0.0, ON_POLICY))  # a run whose first named phase was begun by an alarm
    return named[:1] + [b for a, b in itertools.pairwise(named) if a[1] != b[1]]
