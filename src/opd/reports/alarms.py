"""Alarms and phases of a run as its journals tell them.

A line of alarms.jsonl has `step`, `name` and `message`; `evidence`, `remedy` and `action` where the
rule has them. Whatever else it holds is shown as evidence. A line with a `phase`, there or in
metrics.jsonl, says which phase of the run its step belongs to.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opd.reports.formatting import minus
from opd.run.jsonl import flatten
from opd.run.layout import ON_POLICY

_OWN = ("step", "name", "alarm", "message", "evidence", "remedy", "action", "phase")


@dataclass(frozen=True)
class Alarm:
    """One alarm, in words."""

    step: int
    name: str
    message: str
    evidence: str = ""
    remedy: str = ""
    action: str = ""

    @property
    def acted(self) -> str:
        """What the run did about it; empty if it only warned."""
        quiet = self.action in ("", "none") or self.action.startswith("warn")
        return "" if quiet else "ended the run" if self.action == "stop" else self.action


def alarms(records: Iterable[Mapping[str, Any]]) -> list[Alarm]:
    """Every alarm of a journal by step; lines that only name a phase are none."""
    found = [_alarm(r) for r in records if not is_phase(r)]
    return sorted(found, key=lambda alarm: alarm.step)


def is_phase(record: Mapping[str, Any]) -> bool:
    """Whether a line of the journal says that a phase began, and nothing else."""
    return "phase" in record and not ({"name", "alarm", "message"} & record.keys())


def _alarm(record: Mapping[str, Any]) -> Alarm:
    rest = {k: v for k, v in record.items() if k not in _OWN}
    evidence = [words(record.get("evidence")), words(rest)]
    name = record.get("name", record.get("alarm", "alarm"))
    return Alarm(
        int(record["step"]),
        words(name),
        words(record.get("message")),
        ", ".join(filter(None, evidence)),
        words(record.get("remedy")),
        words(record.get("action")),
    )


def words(value: Any) -> str:
    """A JSON value as a reader would write it; empty for nothing."""
    if value is None or value == {} or value == []:
        return ""
    if isinstance(value, Mapping):
        flat = flatten(dict(value)).items()
        return ", ".join(f"{key} {words(each)}" for key, each in flat)
    if isinstance(value, list):
        return ", ".join(filter(None, map(words, value)))
    return minus(f"{value:.4g}") if isinstance(value, float) else str(value)


def starts(found: Sequence[Alarm]) -> list[float]:
    """Steps at which an alarm began: of one that goes on from step to step, the first."""
    seen = {(alarm.name, alarm.step) for alarm in found}
    return sorted({float(step) for name, step in seen if (name, step - 1) not in seen})


def phases(records: Sequence[Mapping[str, Any]]) -> list[tuple[float, str]]:
    """First step and name of every phase of a run, in order.

    Args:
        records: lines of the journals; those of one step in the order they were written.
    """
    named = [(float(r["step"]), str(r["phase"])) for r in records if "phase" in r]
    named.sort(key=lambda at: at[0])  # of one step in the order of the journal
    if named and any("phase" not in r and 0 < r["step"] < named[0][0] for r in records):
        named.insert(0, (0.0, ON_POLICY))  # an alarm began the first that has a name
    firsts = named[:1] + [b for a, b in itertools.pairwise(named) if a[1] != b[1]]
    return firsts
