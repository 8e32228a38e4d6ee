"""The result of `opd check` as a document, and as one section of a run's report.

Its input is check.json: `verdict`, `reasons`, `advice` with the keys it would set, `numbers`,
`teachers`, `plan`. It is read tolerantly: a part that is absent is not shown.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from opd.reports.document import (
    Cell,
    Document,
    Number,
    Part,
    Section,
    Sentence,
    Table,
    Tile,
    Tone,
    Verdict,
)
from opd.reports.formatting import minus, percent, plain, points, seconds
from opd.run.disk import human_size
from opd.run.jsonl import flatten

_HEADLINES: dict[str, tuple[Tone, str]] = {
    "go": ("good", "Go: nothing stands against this run."),
    "go with changes": ("unclear", "Go with changes: those below, each with its predicted effect."),
    "not known": ("unclear", "Not known: see below what would settle it."),
    "no-go": ("bad", "No-go: this run is not expected to work."),
}
_SOME_PREDICTED = (
    "Go with changes: those below that have a predicted effect; that of the others is not known."
)
_HEADLINES["don't"] = _HEADLINES["no-go"]
_AGAINST = "Against this verdict"  # begins such a reason
_PARTS = ("value", "low", "high", "n")  # of a number with its interval
_LEVELS_MISLEAD = (
    "Levels alone mislead: failing pairs can start high too. The verdict rests on distance and "
    "gain together."
)


def check_document(record: Mapping[str, Any]) -> Document:
    """The whole result of a check.

    Args:
        record: of check.json.
    """
    return Document(
        "opd check", str(record.get("file", "")), check_sections(record), source="opd check"
    )


def check_sections(record: Mapping[str, Any]) -> list[Section]:
    """The verdict, then everything that was measured.

    Args:
        record: of check.json.
    """
    steps = _at(record, "plan", "steps")
    tables = (
        ("teachers", "Teachers, best first", _ranking(record)),
        ("examples", "Completions that were graded wrong", _examples(record)),
        ("compatibility", "Compatibility", _compatibility(record)),
        ("quarters", "By quarter of the student's completions", _by_quarter(record)),
        ("memory", "Memory by phase, planned", _memory(record)),
        ("cost", f"Cost of {steps} steps", _cost(record)),
        ("numbers", "All measurements", number_table(record.get("numbers"), folded=True)),
    )
    return [
        Section("verdict", "Verdict", [check_verdict(record)]),
        *(Section(name, title, [table]) for name, title, table in tables if table is not None),
    ]


def check_section(record: Mapping[str, Any]) -> Section:
    """The check as one section of a run's report.

    Args:
        record: of check.json.
    """
    parts: list[Part] = [check_verdict(record)]
    numbers = number_table(record.get("numbers"), folded=True)
    if numbers is not None:
        parts.append(numbers)
    return Section("check", "Result of opd check before the run", parts)


def check_verdict(record: Mapping[str, Any]) -> Verdict:
    """Verdict, reasons, limitations and advice in words."""
    verdict = str(record.get("verdict", "")).replace("\u2019", "'")
    unknown: tuple[Tone, str] = ("unclear", f"The check's verdict: {verdict or 'none'}.")
    tone, headline = _HEADLINES.get(verdict, unknown)
    sentences = [_sentence(reason) for reason in _items(record.get("reasons"))]
    if record.get("confidence"):
        sentences.append(Sentence(f"Confidence: {str(record['confidence']).rstrip('.')}."))
    sentences += [Sentence(str(text)) for text in _items(record.get("limitations"))]
    sentences += [
        Sentence(f"Outside the range of the calibration runs: {text}.")
        for text in _items(_at(_best_teacher(record), "forecast", "out_of_range"))
    ]
    if verdict == "go" and any(sentence.text.startswith(_AGAINST) for sentence in sentences):
        headline = "Go, although something that was measured speaks against it: see below."
    advice = [_sentence(item) for item in _items(record.get("advice"))]
    if verdict == "go with changes" and not all(
        _at(item, "effect") for item in _items(record.get("advice"))
    ):
        headline = _SOME_PREDICTED
    if verdict == "go" and advice and headline == _HEADLINES["go"][1]:
        headline = "Go, with something to improve: see what to try next."
    if verdict == "go" and record.get("cold_start"):
        headline = headline.replace(
            "Go", "Go, even without the cold start that the run begins with", 1
        )
    return Verdict(headline, tone, _tiles(record), sentences, advice)


def _teachers(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [t for t in _items(record.get("teachers")) if isinstance(t, Mapping)]


def _best_teacher(record: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(iter(_teachers(record)), {})


def _at(record: Any, *keys: str) -> Any:
    """A value some levels down; None where a level is absent."""
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def _tiles(record: Mapping[str, Any]) -> list[Tile]:
    """Student, teacher and the predicted change, where they are known."""
    forecast = _at(_best_teacher(record), "forecast")
    without = " without the cold start" if record.get("cold_start") else ""
    numbers = (
        ("student now", _accuracy(_at(record, "numbers", "student_accuracy"))),
        ("teacher", _accuracy(_at(record, "numbers", "teacher_accuracy"))),
        (f"predicted change{without}", _change(_at(forecast, "change"))),
        (f"predicted gap recovery{without}", _recovery(_at(forecast, "recovery"))),
    )
    return [Tile(label, number) for label, number in numbers if number is not None]


def _interval(estimate: Any) -> tuple[float, float, float] | None:
    values = [_at(estimate, part) for part in _PARTS[:3]]
    if not all(isinstance(value, int | float) for value in values):
        return None
    return values[0], values[1], values[2]


def _accuracy(estimate: Any) -> Number | None:
    if (ends := _interval(estimate)) is None:
        return None
    value, low, high = ends
    return Number(value, percent(value).text, f"95% interval {100 * low:.1f} to {100 * high:.1f}%")


def _change(estimate: Any) -> Number | None:
    """A predicted change of accuracy; forecasts have 90 % intervals."""
    if (ends := _interval(estimate)) is None:
        return None
    value, low, high = ends
    note = minus(f"90% interval {100 * low:+z.1f} to {100 * high:+z.1f}")
    return Number(value, points(value), note)


def _recovery(estimate: Any) -> Number | None:
    if (ends := _interval(estimate)) is None:
        return None
    value, low, high = ends
    note = minus(f"90% interval {100 * low:.0f} to {100 * high:.0f}%")
    return Number(value, percent(value).text, note)


def _ranking(record: Mapping[str, Any]) -> Table | None:
    if len(_teachers(record)) < 2:
        return None
    rows: list[list[Cell]] = []
    for teacher in _teachers(record):
        why = [_sentence(each).text for each in list(_items(teacher.get("reasons")))[:1]]
        if teacher.get("verdict") == "go with changes":  # the changes come first
            why += [_sentence(each).text for each in list(_items(teacher.get("advice")))[:1]]
        rows.append(
            [
                str(teacher.get("name", "")),
                str(teacher.get("verdict", "")).replace("don't", "no-go"),
                _change(_at(teacher, "forecast", "change")) or "",
                _accuracy(_at(teacher, "numbers", "teacher_accuracy")) or "",
                ". ".join(why),
            ]
        )
    columns = ("teacher", "verdict", "predicted change", "accuracy of the teacher", "first reason")
    return Table("", columns, rows)


def _examples(record: Mapping[str, Any]) -> Table | None:
    keys = ("who", "prompt", "answer", "text")
    rows: list[list[Cell]] = [
        [str(_at(example, key) or "") for key in keys] for example in _items(record.get("examples"))
    ]
    return Table("", ("model", "prompt", "expected answer", "completion"), rows) if rows else None


def _compatibility(record: Mapping[str, Any]) -> Table | None:
    rows: list[list[Cell]] = [
        [str(_at(finding, key) or "") for key in ("level", "topic", "message", "fix")]
        for finding in _items(_best_teacher(record).get("compatibility"))
    ]
    return Table("", ("", "item", "observation", "fix"), rows) if rows else None


def _memory(record: Mapping[str, Any]) -> Table | None:
    memory = _at(_best_teacher(record), "memory")
    rows: list[list[Cell]] = []
    for device in _items(_at(memory, "devices")):
        for phase in _items(_at(device, "phases")):
            size, parts = _at(phase, "bytes"), _at(phase, "parts")
            if not isinstance(size, int | float) or not isinstance(parts, Mapping):
                continue
            sizes = {str(k): v for k, v in parts.items() if isinstance(v, int | float)}
            named = ", ".join(f"{name} {human_size(value)}" for name, value in sizes.items())
            name = str(_at(phase, "phase") or "")
            rows.append([str(_at(device, "device")), name, Number(size, human_size(size)), named])
    if not rows:
        return None
    names = ("precision", "tokens_per_microbatch", "rows", "length", "processes")
    note = ", ".join(f"{name} {_short(_at(memory, name))}" for name in names)
    return Table("", ("device", "phase", "memory", "of it"), rows, note, folded=True)


def _by_quarter(record: Mapping[str, Any]) -> Table | None:
    metrics = _at(_best_teacher(record), "by_quarter")
    if not isinstance(metrics, Mapping) or not metrics:
        return None
    rows: list[list[Cell]] = [
        [str(name), *(_cell(value) for value in _items(values))] for name, values in metrics.items()
    ]
    columns = ("metric", *(str(i) for i in range(1, max(map(len, rows)))))
    return Table("", columns, rows, _LEVELS_MISLEAD)


def _cost(record: Mapping[str, Any]) -> Table | None:
    rows = [
        ("time", ("seconds",), seconds),
        ("of it evaluations", ("evaluation",), seconds),
        ("of it checkpoints", ("saving",), seconds),
        ("time per step", ("step",), seconds),
        ("peak memory, measured over one whole step", ("peak",), human_size),
        *((f"of it {part}", ("memory", part), human_size) for part in _at_keys(record, "memory")),
        ("disk", ("disk",), human_size),
        ("tokens generated by the student", ("tokens",), _count),
        ("rollouts scored by the teacher", ("teacher_calls",), _count),
        *((f"parameters, {m}", ("parameters", m), _count) for m in _at_keys(record, "parameters")),
    ]
    values = [(label, _at(record, "plan", *keys), show) for label, keys, show in rows]
    cells: list[list[Cell]] = [
        [label, Number(value, show(value))]
        for label, value, show in values
        if isinstance(value, int | float)
    ]
    took, fraction = record.get("seconds"), _at(record, "plan", "check_share")
    note = f"This check took {seconds(took)}" if isinstance(took, int | float) else ""
    note += f", {fraction:.1%} of the run" if note and isinstance(fraction, int | float) else ""
    return Table("", ("", ""), cells, note and f"{note}.") if cells else None


def _at_keys(record: Mapping[str, Any], key: str) -> list[str]:
    """Names of the parts of an entry of the plan."""
    parts = _at(record, "plan", key)
    return [str(name) for name in parts] if isinstance(parts, Mapping) else []


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        return value
    return () if value is None else (value,)


def _sentence(item: Any) -> Sentence:
    """A reason or a piece of advice: plain text, or text with evidence or keys to set."""
    if not isinstance(item, Mapping):
        return Sentence(str(item))
    keys = item.get("set")
    evidence = str(item.get("evidence", ""))
    if isinstance(keys, Mapping) and keys:
        change = f"set {overrides(keys)}"
        evidence = f"{change}; {evidence}" if evidence else change
    return Sentence(str(item.get("text", "")), evidence, {"set": keys} if keys else {})


def overrides(keys: Mapping[str, Any]) -> str:
    """Keys and values as arguments of a command: `opd train run.yaml coldstart.lr=0.0003`."""
    return " ".join(shlex.quote(f"{key}={value}") for key, value in _arguments(keys, ""))


def _arguments(value: Any, key: str) -> Iterable[tuple[str, str]]:
    """Dotted keys and what the command line, which reads YAML, takes for their values."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _arguments(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value if _is_plain_yaml(value) else json.dumps(value)


def _is_plain_yaml(value: Any) -> bool:
    """Whether YAML reads a text as itself."""
    try:
        return isinstance(value, str) and bool(yaml.safe_load(value) == value)
    except yaml.YAMLError:
        return False


def number_table(
    numbers: Any, *, caption: str = "All measurements", folded: bool = False
) -> Table | None:
    """Numbers, nested or not, one per row, with their intervals; None without any."""
    if not isinstance(numbers, Mapping) or not numbers:
        return None
    rows = list(_rows(numbers, ""))
    return Table(caption, ("number", "value"), rows, folded=folded)


def _rows(numbers: Mapping[str, Any], prefix: str) -> Iterable[list[Cell]]:
    for key, value in numbers.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and isinstance(value.get("value"), int | float):
            yield [name, _with_interval(value)]
        elif isinstance(value, Mapping):
            yield from _rows(value, f"{name}.")
        else:
            yield [name, _cell(value)]


def _with_interval(estimate: Mapping[str, Any]) -> Number:
    low, high, count = (estimate.get(part) for part in _PARTS[1:])
    note = ""
    if isinstance(low, int | float) and isinstance(high, int | float):
        note = f"95% interval {plain(low).text} to {plain(high).text}"
    if isinstance(count, int | float):
        note += f"{', ' if note else ''}n = {plain(count).text}"
    value = plain(estimate["value"])
    return Number(value.value, value.text, note)


def _cell(value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _short(value)
    return plain(value)


def _short(value: Any) -> str:
    """A JSON value on one line."""
    if value in ({}, []):
        return str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in flatten(dict(value)).items())
    if isinstance(value, list):
        return ", ".join(_short(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else str(value)
