"""What `opd check` found, as parts of a page: its own page, and a section of a run's report.

The record is check.json: `verdict` ("go", "go with changes", "don't"), `reasons`, `advice` with the
keys it would set, and `numbers`. Read tolerantly: a part that is absent is not shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opd.reports.document import (
    Cell,
    Number,
    Part,
    Section,
    Sentence,
    Table,
    Tile,
    Tone,
    Verdict,
)
from opd.reports.formatting import minus, percent, plain, points
from opd.run.preflight import flatten

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
    for name, title, table in (
        ("teachers", "Teachers, best first", _ranking(found)),
        ("handshake", "Handshake", _handshake(found)),
        ("cost", "What the run will take", _cost(found)),
    ):
        if table is not None:
            sections.append(Section(name, title, [table]))
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
    if found.get("sureness"):
        reasons.append(Sentence(f"How sure: {found['sureness']}."))
    return Verdict(headline, tone, _tiles(found), reasons, advice)


def _teachers(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in _items(found.get("teachers")) if isinstance(one, Mapping)]


def _at(found: Mapping[str, Any], *names: str) -> Any:
    """A value some levels down; None where the way is cut off."""
    value: Any = found
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _tiles(found: Mapping[str, Any]) -> list[Tile]:
    """Student, teacher and the expected change, where they are known."""
    best = next(iter(_teachers(found)), {})
    told = (
        ("student now", _accuracy(_at(found, "numbers", "student_accuracy"))),
        ("teacher", _accuracy(_at(found, "numbers", "teacher_accuracy"))),
        ("expected change", _change(best)),
    )
    return [Tile(label, number) for label, number in told if number is not None]


def _interval(estimate: Any) -> tuple[float, float, float] | None:
    values = [_at(estimate, part) for part in _PARTS[:3]] if isinstance(estimate, Mapping) else []
    if len(values) < 3 or not all(isinstance(value, int | float) for value in values):
        return None
    return values[0], values[1], values[2]


def _accuracy(estimate: Any) -> Number | None:
    if (found := _interval(estimate)) is None:
        return None
    value, low, high = found
    return Number(value, percent(value).text, f"95% interval {100 * low:.1f} to {100 * high:.1f}%")


def _change(teacher: Mapping[str, Any]) -> Number | None:
    """The expected change; its interval is the 90 % one of the prospect."""
    if (found := _interval(_at(teacher, "prospect", "change"))) is None:
        return None
    value, low, high = found
    return Number(
        value, points(value), minus(f"90% interval {100 * low:+.1f} to {100 * high:+.1f}")
    )


def _ranking(found: Mapping[str, Any]) -> Table | None:
    if len(_teachers(found)) < 2:
        return None
    rows: list[list[Cell]] = [
        [
            str(one.get("name", "")),
            str(one.get("verdict", "")),
            _change(one) or "",
            _accuracy(_at(one, "numbers", "teacher_accuracy")) or "",
        ]
        for one in _teachers(found)
    ]
    return Table("", ("teacher", "verdict", "expected change", "alone"), rows)


def _handshake(found: Mapping[str, Any]) -> Table | None:
    best = next(iter(_teachers(found)), {})
    rows: list[list[Cell]] = [
        [str(_at(point, part) or "") for part in ("level", "what", "message", "fix")]
        for point in _items(best.get("handshake"))
    ]
    return Table("", ("", "what", "seen", "fix"), rows) if rows else None


def _cost(found: Mapping[str, Any]) -> Table | None:
    told = (
        ("minutes", ("seconds",), 60.0),
        ("of it evaluations, minutes", ("evaluation",), 60.0),
        ("seconds a step", ("step",), 1.0),
        ("steps", ("steps",), 1.0),
        ("peak memory, GB", ("peak",), 1e9),
        ("of it student weights, GB", ("memory", "student weights"), 1e9),
        ("gradients, GB", ("memory", "gradients"), 1e9),
        ("optimizer, GB", ("memory", "optimizer"), 1e9),
        ("teacher weights, GB", ("memory", "teacher weights"), 1e9),
        ("disk, GB", ("disk",), 1e9),
        ("tokens the student writes", ("tokens",), 1.0),
        ("rollouts the teacher scores", ("teacher_calls",), 1.0),
    )
    known = [(label, _at(found, "plan", *way), unit) for label, way, unit in told]
    rows: list[list[Cell]] = [
        [label, plain(value / unit)]
        for label, value, unit in known
        if isinstance(value, int | float)
    ]
    return Table("", ("what", "how much"), rows) if rows else None


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
