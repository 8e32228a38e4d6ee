"""Parquet files that round-trip bit for bit, or are detected as damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Array = np.ndarray[Any, Any]

META = b"opd"
_HASH_MARKER = b"opd-sha256:"
_BLANK_HASH = b"0" * 64


def to_parquet(columns: Mapping[str, Any], meta: Mapping[str, Any]) -> bytes:
    """Encode columns and JSON metadata as a parquet file with a sha256 over all of its bytes."""
    string_columns = [n for n, c in columns.items() if pa.types.is_string(c.type)]
    sink = pa.BufferOutputStream()
    table = pa.table(dict(columns))
    # No dictionaries for numbers: they could merge NaNs, or zeros, of different bits. No
    # statistics and no Arrow schema: the marker below must stand in the file exactly once.
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=string_columns,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        writer.write_table(table)
        text = json.dumps(dict(meta), allow_nan=False)
        writer.add_key_value_metadata({META: text, b"seal": _HASH_MARKER + _BLANK_HASH})
    data = bytes(sink.getvalue().to_pybytes())
    return _insert_hash(data, hashlib.sha256(data).hexdigest().encode())


def from_parquet(data: bytes) -> tuple[Any, dict[str, Any]]:
    """Decode the table and the JSON metadata that `to_parquet` was given.

    Raises:
        ValueError: when a byte differs; a damaged file is not parsed at all.
    """
    start = data.rfind(_HASH_MARKER) + len(_HASH_MARKER)
    blank = _insert_hash(data, _BLANK_HASH)
    if hashlib.sha256(blank).hexdigest().encode() != data[start : start + len(_BLANK_HASH)]:
        raise ValueError("its bytes do not match their sha256")
    table = pq.read_table(pa.BufferReader(data))
    return table, json.loads(table.schema.metadata[META])


def read_columns(path: Path, names: Sequence[str], rows: int) -> Any:
    """Some columns of a file's first rows, for people to look at: its sha256 is not computed.

    Raises:
        ValueError: no such columns, or a file that is no parquet file.
        OSError: it cannot be read.
    """
    with pq.ParquetFile(path) as file:
        if missing := set(names) - set(file.schema_arrow.names):
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}")
        return file.read(columns=list(names)).slice(0, rows)


def _insert_hash(data: bytes, sha256: bytes) -> bytes:
    """The file with `sha256` after the marker, in place of what stands there."""
    start = data.rfind(_HASH_MARKER) + len(_HASH_MARKER)
    return data[:start] + sha256 + data[start + len(sha256) :]


def array_columns(name: str, arrays: Sequence[Array | None], dims: int) -> dict[str, Any]:
    """Encode 1-D or 2-D arrays, any of them None, as a list column.

    2-D arrays are flattened by rows; a column `<name>_shape` holds their shapes.

    Raises:
        ValueError: for arrays of several dtypes or another number of dimensions.
    """
    present = [a for a in arrays if a is not None]
    if not present:
        return {name: pa.nulls(len(arrays))}
    if len({a.dtype for a in present}) > 1 or any(a.ndim != dims for a in present):
        seen = sorted({f"{a.dtype} {a.ndim}-D" for a in present})
        raise ValueError(f"{name} must be {dims}-D arrays of one dtype, found {', '.join(seen)}")
    sizes = [0 if a is None else a.size for a in arrays]
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int64())
    values = pa.array(np.concatenate([np.ascontiguousarray(a).reshape(-1) for a in present]))
    mask = pa.array([a is None for a in arrays])
    columns = {name: pa.LargeListArray.from_arrays(offsets, values, mask=mask)}
    if dims == 2:
        shapes = [None if a is None else list(a.shape) for a in arrays]
        columns[f"{name}_shape"] = pa.array(shapes, pa.list_(pa.int32()))
    return columns


def read_arrays(table: Any, name: str, dims: int) -> list[Array | None]:
    """Decode what `array_columns` was given; the arrays own their memory."""
    column = table.column(name)
    if pa.types.is_null(column.type):
        return [None] * len(column)
    column = column.combine_chunks()
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy(zero_copy_only=False)
    present = column.is_valid().to_pylist()
    arrays: list[Array | None] = [
        np.array(values[offsets[i] : offsets[i + 1]]) if is_present else None
        for i, is_present in enumerate(present)
    ]
    if dims == 2:
        shapes = zip(arrays, table.column(f"{name}_shape").to_pylist(), strict=True)
        arrays = [None if a is None else a.reshape(shape) for a, shape in shapes]
    return arrays


def text_columns(fields: Mapping[str, Sequence[str | None]]) -> dict[str, Any]:
    """Encode texts as string columns with a column `exact_texts` beside them.

    Text that UTF-8 cannot hold (lone surrogates) is escaped in its own column, and kept exactly, as
    ASCII JSON, in `exact_texts`.
    """
    columns = {n: pa.array([_escape(t) for t in v], pa.string()) for n, v in fields.items()}
    exact = [
        None if row == tuple(_escape(t) for t in row) else json.dumps(row)
        for row in zip(*fields.values(), strict=True)
    ]
    return columns | {"exact_texts": pa.array(exact, pa.string())}


def read_texts(table: Any, names: Sequence[str]) -> list[tuple[str | None, ...]]:
    """Decode rows of what `text_columns` was given, fields in the same order."""
    escaped = zip(*(table.column(n).to_pylist() for n in names), strict=True)
    exact = table.column("exact_texts").to_pylist()
    return [r if e is None else tuple(json.loads(e)) for r, e in zip(escaped, exact, strict=True)]


def _escape(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")
