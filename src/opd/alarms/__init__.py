"""Alarm rules over the metrics of a run: what goes wrong, found while there is time to act.

Alarms are a pure function of the rows of metrics.jsonl so far: a resumed run raises the same ones.
docs/alarms.md has one row per rule. No torch.
"""

from opd.alarms.history import Change, History
from opd.alarms.monitor import Alarm, Monitor, replay, window_size
from opd.alarms.rules import RULES, Rule

__all__ = ["RULES", "Alarm", "Change", "History", "Monitor", "Rule", "replay", "window_size"]
