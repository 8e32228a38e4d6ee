"""Rules over the metric stream: what goes wrong, seen while there is still time to act.

A pure function of the rows of metrics.jsonl up to now: a resumed run raises the same alarms.
docs/alarms.md has one row a rule. No torch.
"""

from opd.alarms.history import Change, History
from opd.alarms.monitor import Alarm, Watch, replay, window_of
from opd.alarms.rules import RULES, Rule

__all__ = ["RULES", "Alarm", "Change", "History", "Rule", "Watch", "replay", "window_of"]
