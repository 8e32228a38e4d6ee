"""Arrow columns that give back exactly what they were made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray[Any, Any]


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
