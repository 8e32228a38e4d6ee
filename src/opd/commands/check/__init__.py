"""`opd check`: before a run, will this teacher help this student on these prompts?

candidates (teachers loaded beside one student, handshakes) - timing (one step, timed) - play
(rounds of the probe within the budget) - telling (the page, the record).
"""

from opd.commands.check.run import run_check

__all__ = ["run_check"]
