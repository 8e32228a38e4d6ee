"""Alarm rules over the metrics of a run: what goes wrong, found while there is time to act.

Alarms are a pure function of the rows of metrics.jsonl so far: a resumed run raises the same ones.
docs/alarms.md has one row per rule. No torch.
"""

from opd.alarms.conditions import Evidence
from opd.alarms.history import Change, History
from opd.alarms.monitor import Alarm, Monitor, replay, window_size
from opd.alarms.rules import RULES, Rule, rules_of

__all__ = [
    "RULES",
    "Alarm",
    "Change",
    "Evidence",
    "History",
    "Monitor",
    "Rule",
    "replay",
    "rules_of",
    "window_size",
]
