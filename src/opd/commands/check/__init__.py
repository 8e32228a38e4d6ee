"""`opd check`: before a run, will this teacher help this student on these prompts?

candidates (teachers loaded beside one student, compatibility) - timing (steps, timed) - rounds (of
the probe within the budget) - output (text, record, report, file with the advice).
"""

from opd.commands.check.run import run_check

__all__ = ["run_check"]
