"""Parquet files that give back exactly what they were made of, or are known to be damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Array = np.ndarray[Any, Any]

META = b"opd"
_SEAL = b"opd-sha256:"
_BLANK = b"0" * 64


def to_parquet(columns: Mapping[str, Any], meta: Mapping[str, Any]) -> bytes:
    """A parquet file of `columns`, with JSON values beside them and a seal over every byte."""
    texts = [n for n, c in columns.items() if pa.types.is_string(c.type)]
    sink = pa.BufferOutputStream()
    table = pa.table(dict(columns))
    # No dictionaries for numbers: they could merge NaNs, or zeros, of different bits. No
    # statistics and no Arrow schema: they would copy what only the seal's own bytes may hold.
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=texts,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        writer.write_table(table)
        text = json.dumps(dict(meta), allow_nan=False)
        writer.add_key_value_metadata({META: text, b"seal": _SEAL + _BLANK})
    data = bytes(sink.getvalue().to_pybytes())
    return _sealed(data, hashlib.sha256(data).hexdigest().encode())


def from_parquet(data: bytes) -> tuple[Any, dict[str, Any]]:
    """The table and the JSON values that `to_parquet` was given.

    Raises:
        ValueError: when a byte differs; nothing of a damaged file is parsed.
    """
    at = data.rfind(_SEAL) + len(_SEAL)
    blank = _sealed(data, _BLANK)
    if hashlib.sha256(blank).hexdigest().encode() != data[at : at + len(_BLANK)]:
        raise ValueError("its bytes do not match their sha256")
    table = pq.read_table(pa.BufferReader(data))
    return table, json.loads(table.schema.metadata[META])


def _sealed(data: bytes, sha256: bytes) -> bytes:
    at = data.rfind(_SEAL) + len(_SEAL)
    return data[:at] + sha256 + data[at + len(sha256) :]


def array_columns(name: str, arrays: Sequence[Array | None], dims: int) -> dict[str, Any]:
    """A list column of 1-D or 2-D arrays, any of them None.

    2-D ones are flattened by rows and have a column `<name>_shape` beside them.

    Raises:
        ValueError: for arrays of several dtypes or another number of dimensions.
    """
    given = [a for a in arrays if a is not None]
    if not given:
        return {name: pa.nulls(len(arrays))}
    if len({a.dtype for a in given}) > 1 or any(a.ndim != dims for a in given):
        seen = sorted({f"{a.dtype} {a.ndim}-D" for a in given})
        raise ValueError(f"{name} must be {dims}-D arrays of one dtype, found {', '.join(seen)}")
    sizes = [0 if a is None else a.size for a in arrays]
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int64())
    values = pa.array(np.concatenate([np.ascontiguousarray(a).reshape(-1) for a in given]))
    mask = pa.array([a is None for a in arrays])
    columns = {name: pa.LargeListArray.from_arrays(offsets, values, mask=mask)}
    if dims == 2:
        shapes = [None if a is None else list(a.shape) for a in arrays]
        columns[f"{name}_shape"] = pa.array(shapes, pa.list_(pa.int32()))
    return columns


def read_arrays(table: Any, name: str, dims: int) -> list[Array | None]:
    """What `array_columns` was given; the arrays own their memory."""
    column = table.column(name)
    if pa.types.is_null(column.type):
        return [None] * len(column)
    column = column.combine_chunks()
    offsets = column.offsets.to_numpy()
    values = column.values.to_numpy(zero_copy_only=False)
    present = column.is_valid().to_pylist()
    arrays: list[Array | None] = [
        np.array(values[offsets[i] : offsets[i + 1]]) if there else None
        for i, there in enumerate(present)
    ]
    if dims == 2:
        shapes = zip(arrays, table.column(f"{name}_shape").to_pylist(), strict=True)
        arrays = [None if a is None else a.reshape(shape) for a, shape in shapes]
    return arrays


def text_columns(fields: Mapping[str, Sequence[str | None]]) -> dict[str, Any]:
    """String columns, and a column `exact_texts` beside them.

    Text that UTF-8 cannot hold (lone surrogates) is shown with escapes, and kept exactly, as ASCII
    JSON, in `exact_texts`.
    """
    columns = {n: pa.array([_shown(t) for t in v], pa.string()) for n, v in fields.items()}
    exact = [
        None if row == tuple(_shown(t) for t in row) else json.dumps(row)
        for row in zip(*fields.values(), strict=True)
    ]
    return columns | {"exact_texts": pa.array(exact, pa.string())}


def read_texts(table: Any, names: Sequence[str]) -> list[tuple[str | None, ...]]:
    """Rows of what `text_columns` was given, fields in the same order."""
    shown = zip(*(table.column(n).to_pylist() for n in names), strict=True)
    exact = table.column("exact_texts").to_pylist()
    return [r if e is None else tuple(json.loads(e)) for r, e in zip(shown, exact, strict=True)]


def _shown(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")
