"""Rows of JSONL, JSON, parquet and CSV files, or of a hub dataset.

Every error names file and line or row, what was found and what was expected. `opd.data.prompts`
interprets the columns.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
        location: for messages, as in "train.jsonl, line 3".
        values: its columns.
    """

    index: int
    location: str
    values: dict[str, Any]


Source = str | Sequence[str]


def paths_of(source: Source) -> list[str]:
    """The files, or data sets, one by one."""
    return [source] if isinstance(source, str) else list(source)


def source_name(source: Source) -> str:
    """A file, or files, for messages."""
    return source if isinstance(source, str) else ", ".join(source)


def read_rows(source: Source) -> list[Row]:
    """All rows of a file, or of a hub dataset named `hub:owner/name[:split]`; or of several.

    Of several, rows are numbered through, in the order of the files.

    Raises:
        UserError: no such file, unknown suffix, not UTF-8, empty, or a row that cannot be read,
            with file and line.
        MissingDependency: a hub dataset without the package `datasets`.
    """
    if not isinstance(source, str):
        rows = [row for path in source for row in read_rows(path)]
        return [replace(row, index=i) for i, row in enumerate(rows)]
    path = source
    if path.startswith(HUB):
        return _require_rows(path, _rows(path, _read_hub(path)))
    file = Path(path).expanduser()
    if not file.exists():
        raise UserError(f"No such file: {path}. For a dataset on the hub write {HUB}owner/name.")
    if file.is_dir():
        raise UserError(f"{path} is a folder; give one file ending in {', '.join(SUFFIXES)}.")
    if not file.is_file():
        raise UserError(f"{path} is no ordinary file (a pipe or a device?); write its rows to one.")
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: cannot tell what it is by its suffix {suffix!r}. "
            f"Allowed: {', '.join(SUFFIXES)}, or {HUB}owner/name[:split]."
        )
    if suffix == ".parquet":
        rows = _rows(path, _read_parquet(file))
    else:
        parsers = {".json": _parse_json, ".csv": _parse_csv}
        located = parsers.get(suffix, _parse_jsonl)(path, _read_text(file))
        rows = [Row(i, location, values) for i, (location, values) in enumerate(located)]
    return _require_rows(path, rows)


def _require_rows(path: str, rows: list[Row]) -> list[Row]:
    if not rows:
        raise UserError(f"{path} holds no rows. Each row is one prompt.")
    return rows


def to_json_line(values: Mapping[str, Any]) -> str:
    """A row as a line that `read_rows` takes: NaN and infinities are null, other objects text."""
    return json.dumps(_finite(values), default=str) + "\n"


def _finite(value: Any) -> Any:
    """A copy with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def column_names(rows: list[Row]) -> list[str]:
    """Names of all columns, in order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def json_type(value: Any) -> str:
    """The JSON type of a value, in words."""
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


def require_one_type(rows: list[Row], column: str) -> None:
    """Check that a column has one type in all rows.

    Raises:
        UserError: naming the first two rows that differ.
    """
    first: dict[str, Row] = {}
    for row in rows:
        value = row.values.get(column)
        if value is not None:
            first.setdefault(json_type(value), row)
    if len(first) > 1:
        (type_a, row_a), (type_b, row_b) = list(first.items())[:2]
        raise UserError(
            f"Column {column!r} changes its type: {type_a} in {row_a.location}, {type_b} in "
            f"{row_b.location}. Give every row the same type."
        )


def _read_text(file: Path) -> str:
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


def _parse_jsonl(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    rows, errors = [], []
    # Only \n ends a line: str.splitlines would also break inside a string at U+2028.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = _loads(line)
        except (ValueError, RecursionError) as error:
            errors.append((number, _describe(error)))
            continue
        if isinstance(value, dict):
            rows.append((f"{path}, line {number}", value))
        else:
            errors.append((number, f"found {json_type(value)}"))
    if errors:
        number, reason = errors[0]
        more = f" ({len(errors)} lines are bad.)" if len(errors) > 1 else ""
        raise UserError(
            f"{path}, line {number}: expected one JSON object, {reason}.{more}\n"
            'A row looks like {"prompt": "...", "answer": "..."}.'
        )
    return iter(rows)


def _parse_json(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        data = _loads(text)
    except (ValueError, RecursionError) as error:
        hint = " One object a line? Name the file .jsonl." if "Extra data" in str(error) else ""
        raise UserError(f"{path}: not valid JSON, {_describe(error)}.{hint}") from None
    if not isinstance(data, list):
        raise UserError(f"{path}: expected a list of objects at the top, found {json_type(data)}.")
    for i, value in enumerate(data):
        if not isinstance(value, dict):
            raise UserError(f"{path}, row {i}: expected an object, found {json_type(value)}.")
        yield f"{path}, row {i}", value


def _loads(text: str) -> Any:
    """Parse strict JSON: no NaN, no Infinity, no key twice, all of which Python's parser takes."""
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} is given twice")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _describe(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        lines = f"line {error.lineno}, " if error.lineno > 1 else ""
        return f"{error.msg} at {lines}column {error.colno}"
    if isinstance(error, RecursionError):
        return "brackets are nested too deeply"
    return str(error)


def _parse_csv(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _read_parquet(file: Path) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(file)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{file}: not a readable parquet file: {first}") from None
    return rows


def _read_hub(path: str) -> list[dict[str, Any]]:
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


def _rows(path: str, records: list[dict[str, Any]]) -> list[Row]:
    return [Row(i, f"{path}, row {i}", values) for i, values in enumerate(records)]
