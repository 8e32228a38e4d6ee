"""Rows from files people have: JSONL, JSON, parquet, CSV, or a hub dataset.

Every complaint says where: file, line or row, what was found, what was expected. What the columns
mean is `opd.data.prompts`' business.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from opd.errors import MissingDependency, UserError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
HUB = "hub:"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a prompt file.

    Attributes:
        index: 0-based row number; blank lines do not count.
        place: where a person finds it, as in "train.jsonl, line 3".
        values: its columns.
    """

    index: int
    place: str
    values: dict[str, Any]


def read_rows(path: str) -> list[Row]:
    """All rows of a file, or of a hub dataset named `hub:owner/name[:split]`.

    Raises:
        UserError: no such file, unknown suffix, not UTF-8, empty, or a row that cannot be read,
            with file and line.
        MissingDependency: a hub dataset without the package `datasets`.
    """
    if path.startswith(HUB):
        return _filled(path, _numbered(path, _hub(path)))
    file = Path(path).expanduser()
    if not file.exists():
        raise UserError(f"No such file: {path}. For a dataset on the hub write {HUB}owner/name.")
    if file.is_dir():
        raise UserError(f"{path} is a folder; give one file ending in {', '.join(SUFFIXES)}.")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: cannot tell what it is by its suffix {suffix!r}. "
            f"Allowed: {', '.join(SUFFIXES)}, or {HUB}owner/name[:split]."
        )
    if suffix == ".parquet":
        rows = _numbered(path, _parquet(file))
    else:
        text = _text(file)
        if suffix == ".json":
            found = _json(path, text)
        elif suffix == ".csv":
            found = _csv(path, text)
        else:
            found = _jsonl(path, text)
        rows = [Row(i, place, values) for i, (place, values) in enumerate(found)]
    return _filled(path, rows)


def _filled(path: str, rows: list[Row]) -> list[Row]:
    if not rows:
        raise UserError(f"{path} holds no rows. Each row is one prompt.")
    return rows


def columns(rows: list[Row]) -> list[str]:
    """Names of all columns, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true/false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else type(value).__name__


def require_one_kind(rows: list[Row], column: str) -> None:
    """Refuse a column that is text here and a list there.

    Raises:
        UserError: naming the first two rows that disagree.
    """
    first: dict[str, Row] = {}
    for row in rows:
        value = row.values.get(column)
        if value is not None:
            first.setdefault(kind(value), row)
    if len(first) > 1:
        (a, row_a), (b, row_b) = list(first.items())[:2]
        raise UserError(
            f"Column {column!r} changes its type: {a} in {row_a.place}, {b} in {row_b.place}. "
            "Give every row the same type."
        )


def _text(file: Path) -> str:
    """The file as text; a byte order mark is dropped."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}.") from None
    if not data.strip():
        raise UserError(f"{file} is empty. Each row is one prompt.")
    nul = data.find(b"\0")
    if nul >= 0:
        line = data[:nul].count(b"\n") + 1
        raise UserError(
            f"{file}, line {line}: a NUL byte, so this is not UTF-8 text (a binary file, or "
            "UTF-16?). Save it as UTF-8."
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{file}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}). Save it as UTF-8."
        ) from None


def _jsonl(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    good, bad = [], []
    # Only \n ends a line: str.splitlines would also break inside a string at U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = _loads(line)
        except (ValueError, RecursionError) as error:
            bad.append((number, _why(error)))
            continue
        if isinstance(value, dict):
            good.append((f"{path}, line {number}", value))
        else:
            bad.append((number, f"found {kind(value)}"))
    if bad:
        number, why = bad[0]
        more = f" ({len(bad)} lines are bad.)" if len(bad) > 1 else ""
        raise UserError(
            f"{path}, line {number}: expected one JSON object, {why}.{more}\n"
            'A row looks like {"prompt": "...", "answer": "..."}.'
        )
    return iter(good)


def _json(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        data = _loads(text)
    except (ValueError, RecursionError) as error:
        hint = " One object a line? Name the file .jsonl." if "Extra data" in str(error) else ""
        raise UserError(f"{path}: not valid JSON, {_why(error)}.{hint}") from None
    if not isinstance(data, list):
        raise UserError(f"{path}: expected a list of objects at the top, found {kind(data)}.")
    for i, value in enumerate(data):
        if not isinstance(value, dict):
            raise UserError(f"{path}, row {i}: expected an object, found {kind(value)}.")
        yield f"{path}, row {i}", value


def _loads(text: str) -> Any:
    """Strict JSON: NaN and Infinity are not JSON, whatever Python thinks."""
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        lines = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg} at {lines}column {error.colno}"
    if isinstance(error, RecursionError):
        return "brackets are nested too deeply"
    return str(error)


def _csv(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            if cells and header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise UserError(f"{path}, line 1: two columns share a name: {header}.")
            elif cells and header is not None:
                if len(cells) != len(header):
                    raise UserError(
                        f"{path}, line {line}: {len(cells)} fields, but the header has "
                        f"{len(header)} ({', '.join(header)}). Quote a field that holds a comma."
                    )
                yield f"{path}, line {line}", dict(zip(header, cells, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: not valid CSV: {error}.") from None


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(file)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: not a readable parquet file: {first}") from None
    return rows


def _hub(path: str) -> list[dict[str, Any]]:
    name, _, split = path.removeprefix(HUB).partition(":")
    if not name:
        raise UserError(f"{path!r} names no dataset; write {HUB}owner/name[:split].")
    if importlib.util.find_spec("datasets") is None:
        raise MissingDependency("datasets", needed_for=f"Reading {path}", extra="hub")
    import datasets

    try:
        return list(datasets.load_dataset(name, split=split or "train"))
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path}: the hub dataset cannot be loaded: {first}\n"
            f"Write {HUB}owner/name:split; a local file needs no network."
        ) from None


def _numbered(path: str, found: list[dict[str, Any]]) -> list[Row]:
    return [Row(i, f"{path}, row {i}", values) for i, values in enumerate(found)]
