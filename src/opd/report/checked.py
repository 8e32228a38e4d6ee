"""What `opd check` found, as parts of a page: its own page, and a section of a run's report.

The record is check.json: `verdict` ("go", "go with changes", "don't"), `reasons`, `advice` with the
keys it would set, and `numbers`. Read tolerantly: a part that is absent is not shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opd.report.document import Cell, Number, Part, Section, Sentence, Table, Tone, Verdict
from opd.report.numbers import plain
from opd.run.place import flatten

_HEADLINES: dict[str, tuple[Tone, str]] = {
    "go": ("good", "Go: nothing stands against this run."),
    "go with changes": ("unclear", "Go, with the changes below."),
    "don't": ("bad", "Don't: this run is not expected to work."),
}
_PARTS = ("value", "low", "high", "n")  # of a number with its interval


def check_sections(found: Mapping[str, Any]) -> list[Section]:
    """The sections of a check's own page: the verdict, then every number.

    Args:
        found: the record of check.json.
    """
    sections = [Section("verdict", "What the check says", [check_verdict(found)])]
    numbers = number_table(found.get("numbers"), caption="")
    if numbers is not None:
        sections.append(Section("numbers", "What was measured", [numbers]))
    return sections


def check_section(found: Mapping[str, Any]) -> Section:
    """The check as one section of another page."""
    parts: list[Part] = [check_verdict(found)]
    numbers = number_table(found.get("numbers"), folded=True)
    if numbers is not None:
        parts.append(numbers)
    return Section("check", "What the check said beforehand", parts)


def check_verdict(found: Mapping[str, Any]) -> Verdict:
    """Verdict, reasons and advice in words."""
    said = str(found.get("verdict", "")).replace("\u2019", "'")
    tone, headline = _HEADLINES.get(said, ("unclear", f"The check said: {said or 'nothing'}."))
    reasons = [_sentence(reason) for reason in _items(found.get("reasons"))]
    advice = [_sentence(one) for one in _items(found.get("advice"))]
    return Verdict(headline, tone, [], reasons, advice)


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else () if value is None else (value,)


def _sentence(said: Any) -> Sentence:
    if not isinstance(said, Mapping):
        return Sentence(str(said))
    keys = said.get("set")
    evidence = str(said.get("evidence", ""))
    if isinstance(keys, Mapping) and keys:
        change = "set " + ", ".join(f"{key}={_short(value)}" for key, value in keys.items())
        evidence = f"{change}; {evidence}" if evidence else change
    return Sentence(str(said.get("text", "")), evidence, {"set": keys} if keys else {})


def number_table(
    numbers: Any, *, caption: str = "What was measured", folded: bool = False
) -> Table | None:
    """Numbers, nested or not, one a row, those with an interval with it; None without any."""
    if not isinstance(numbers, Mapping) or not numbers:
        return None
    rows = list(_rows(numbers, ""))
    return Table(caption, ("number", "value"), rows, folded=folded)


def _rows(numbers: Mapping[str, Any], before: str) -> Iterable[list[Cell]]:
    for key, value in numbers.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
            yield [name, _with_interval(value)]
        elif isinstance(value, Mapping):
            yield from _rows(value, f"{name}.")
        else:
            yield [name, _cell(value)]


def _with_interval(found: Mapping[str, Any]) -> Number:
    low, high, count = (found.get(part) for part in _PARTS[1:])
    note = ""
    if isinstance(low, int | float) and isinstance(high, int | float):
        note = f"95% interval {plain(low).text} to {plain(high).text}"
    if isinstance(count, int | float):
        note += f"{', ' if note else ''}n = {plain(count).text}"
    shown = plain(found["value"])
    return Number(shown.value, shown.text, note)


def _cell(value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _short(value)
    return plain(value)


def _short(value: Any) -> str:
    if value in ({}, []):
        return str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in flatten(dict(value)).items())
    if isinstance(value, list):
        return ", ".join(_short(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)
