"""Append-only JSON lines for metrics, timings and alarms; a partial last line is not read."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opd.errors import UserError
from opd.run.disk import DISK, FileOps

log = logging.getLogger(__name__)

NONFINITE = "nonfinite"


def json_safe(record: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that JSON can hold: NaN and infinities become null and are listed by name.

    `{"loss": nan}` becomes `{"loss": null, "nonfinite": {"loss": "nan"}}`; inside nested values
    the name is the dotted path. Nothing is added when every number is finite.

    Raises:
        ValueError: when the record already has a key "nonfinite".
    """
    if NONFINITE in record:
        raise ValueError(f"{NONFINITE!r} is the name under which NaN and inf are listed")
    nonfinite: dict[str, str] = {}
    safe: dict[str, Any] = {k: _replace_nonfinite(v, k, nonfinite) for k, v in record.items()}
    return safe | {NONFINITE: nonfinite} if nonfinite else safe


def _replace_nonfinite(value: Any, path: str, nonfinite: dict[str, str]) -> Any:
    """A copy of `value` with null for NaN and infinities, which go to `nonfinite` by path."""
    if isinstance(value, float) and not math.isfinite(value):
        nonfinite[path] = str(float(value))
        return None
    if isinstance(value, Mapping):
        return {k: _replace_nonfinite(v, f"{path}.{k}", nonfinite) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(v, f"{path}.{i}", nonfinite) for i, v in enumerate(value)]
    return value


def json_restore(record: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `json_safe`."""
    nonfinite = record.get(NONFINITE, {})
    return {k: _restore(v, k, nonfinite) for k, v in record.items() if k != NONFINITE}


def _restore(value: Any, path: str, nonfinite: Mapping[str, str]) -> Any:
    if value is None and path in nonfinite:
        return float(nonfinite[path])
    if isinstance(value, dict):
        return {k: _restore(v, f"{path}.{k}", nonfinite) for k, v in value.items()}
    if isinstance(value, list):
        return [_restore(v, f"{path}.{i}", nonfinite) for i, v in enumerate(value)]
    return value


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested JSON values; empty mappings and lists are values of their own."""
    if isinstance(value, Mapping) and value:
        items = [(str(k), v) for k, v in value.items()]
    elif isinstance(value, list) and value:
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def encode_line(record: Mapping[str, Any]) -> bytes:
    """One line: sorted keys, ASCII, floats in their shortest exact form, no NaN literals."""
    text = json.dumps(json_safe(record), sort_keys=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Every complete record of a file; a last line without its newline was not finished.

    Raises:
        UserError: for a line that is not a JSON object, with its number.
    """
    return list(_read_lines(path)) if path.exists() else []


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: not JSON ({error}).") from None
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number}: not an object, but {line[:40]!r}.")
            yield record


class Journal:
    """A file of JSON lines that only grows, except when a run resumes."""

    def __init__(self, path: Path, ops: FileOps = DISK) -> None:
        self.path = path
        self._ops = ops
        self._fd = ops.append(path)
        self.truncate(self._complete_bytes())

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record, in one write."""
        line = encode_line(record)
        self._ops.write(self._fd, line)
        self.offset += len(line)
        self._digest.update(line)

    def sync(self) -> int:
        """Wait until every record is on the disk; return the length in bytes."""
        self._ops.fsync(self._fd)
        return self.offset

    @property
    def digest(self) -> str:
        """sha256 of every record."""
        return self._digest.hexdigest()

    def truncate(self, offset: int, digest: str | None = None) -> None:
        """Drop what came after `offset` bytes: steps that will be repeated.

        Args:
            offset: of a checkpoint.
            digest: of the records then; a warning tells when they are others now. None: unknown.
        """
        size = self.path.stat().st_size
        if size < offset:
            log.warning(
                "%s has %d bytes, its checkpoint says %d: records were lost.",
                self.path,
                size,
                offset,
            )
        if size > offset:
            self._ops.truncate(self.path, offset)
        self.offset = min(size, offset)
        self._digest = hashlib.sha256(self.path.read_bytes()[: self.offset])
        if digest is not None and self.digest != digest and size >= offset:
            log.warning(
                "%s is not what this run wrote: its first %d bytes have changed since the "
                "checkpoint. Its numbers, and the report's, cannot be trusted.",
                self.path,
                offset,
            )

    def close(self) -> None:
        """Release the file."""
        os.close(self._fd)

    def _complete_bytes(self) -> int:
        """Length without a last line that was not finished."""
        data = self.path.read_bytes()
        return data.rfind(b"\n") + 1
