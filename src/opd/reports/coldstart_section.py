"""The cold start of a run: what it took, why it ended, what it left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd.reports.document import Cell, Charts, Number, Part, Section, Sentence, Table
from opd.reports.figures import pictures
from opd.reports.formatting import plain, seconds
from opd.reports.ranges import COLDSTART
from opd.reports.read import RunData

_COUNTS = {
    "rounds": "rounds",
    "steps": "supervised steps",
    "completions": "completions learned from",
    "tokens": "their tokens",
    "written_tokens": "tokens the teacher wrote",
    "probe_tokens": "tokens the student wrote to be looked at",
    "prompts_left": "prompts left for on-policy training",
}


def coldstart_sections(run: RunData) -> list[Section]:
    """Curves and counts of the phase; nothing for a run without one."""
    charts = pictures(run, COLDSTART)
    parts: list[Part] = [Charts(charts)] if charts else []
    if run.coldstart is not None:
        parts.append(_table(run, run.coldstart))
    if not parts:
        return []
    at = _after(run.coldstart or {})
    when = f"after step {at}, because of an alarm" if at else "first"
    lead = f"The student imitated completions of the teacher {when}. Right: supervised steps."
    return [Section("coldstart", "The cold start", parts, lead)]


def coldstart_sentence(run: RunData) -> Sentence | None:
    """For the verdict: how much was off-policy, and why it ended."""
    found = run.coldstart
    if found is None:
        return None
    tokens = _number(found.get("tokens"))
    at = _after(found)
    how = f"An alarm began a cold start after step {at}" if at else "It began with a cold start"
    text = f"{how}: {tokens.text} tokens of the teacher's were imitated."
    values: dict[str, Any] = {key: found[key] for key in ("tokens", "rounds") if key in found}
    return Sentence(text, f"It ended because {found.get('reason', 'it ended')}.", values)


def _after(found: dict[str, Any]) -> int:
    """The on-policy step after which it came; 0 for the beginning."""
    at = found.get("after_step", 0)
    return at if isinstance(at, int) else 0


def _table(run: RunData, found: dict[str, Any]) -> Table:
    rows: list[Sequence[Cell]] = [
        [words, _number(found[key])] for key, words in _COUNTS.items() if key in found
    ]
    left = found.get("left_out")
    if isinstance(left, dict):
        rows += [[f"left out: {why}", _number(count)] for why, count in left.items()]
    took = run.spent("time/step_s", cold_start=True)
    rows.append(["time", Number(took, seconds(took))])
    return Table("What it took", ("", ""), rows, f"It ended because {found.get('reason', '?')}.")


def _number(value: Any) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Number(None, str(value))
    return plain(float(value))
