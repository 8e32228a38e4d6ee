"""`opd select`: the configured pair and prompts, measured; a prompt file and a report about it.

prepare (usable prompts, the models that measure them) - templates (candidates compared) - run (the
procedure) - rows (the prompt file) - record (the record and its sentences).
"""

from opd.commands.select.run import run_select

__all__ = ["run_select"]
