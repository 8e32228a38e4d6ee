"""The binary form of a scoring request and its answer: a JSON header, then plain array bytes.

Frame: b"OPDF", header length (uint32, little-endian), header, then every array's little-endian
bytes in the order the header lists them. Nothing in it can be executed, and nothing is believed:
a frame is taken only if its sizes add up to the last byte.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

MAGIC = b"OPDF"
DTYPES: dict[str, np.dtype[Any]] = {
    "i4": np.dtype("<i4"),
    "f4": np.dtype("<f4"),
    "f8": np.dtype("<f8"),
}
MAX_HEADER = 1 << 16
MAX_ARRAYS = 32


class WireError(ValueError):
    """Bytes that are not a whole frame."""


def pack(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """One frame of plain JSON values and arrays of int32, float32 or float64."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    layout, body = [], []
    for name, array in arrays.items():
        flat = np.ascontiguousarray(array)
        flat = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
        layout.append([name, names[flat.dtype], list(flat.shape)])
        body.append(flat.tobytes())
    header = json.dumps({"meta": dict(meta), "arrays": layout}, allow_nan=False).encode("ascii")
    return b"".join([MAGIC, struct.pack("<I", len(header)), header, *body])


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of `pack`; the arrays are read-only views of `data`.

    Raises:
        WireError: for anything but one whole frame.
    """
    if len(data) < 8 or data[:4] != MAGIC:
        raise WireError(f"not a scoring frame: {len(data)} bytes that begin with {data[:16]!r}")
    (length,) = struct.unpack("<I", data[4:8])
    if length > MAX_HEADER or 8 + length > len(data):
        raise WireError(f"cut off: a header of {length} bytes in a frame of {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length].decode("ascii"))
        meta, layout = header["meta"], header["arrays"]
        fields = [(str(name), DTYPES[kind], shape) for name, kind, shape in layout]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(f"the frame's header is damaged: {error}") from None
    if not isinstance(meta, dict) or len(fields) > MAX_ARRAYS:
        raise WireError("the frame's header has another shape than a scoring frame's")
    arrays: dict[str, np.ndarray] = {}
    at = 8 + length
    for name, dtype, shape in fields:
        if name in arrays or not _is_shape(shape):
            raise WireError(f"array {name[:40]!r} of the frame is repeated or has a bad shape")
        size = math.prod(shape) * dtype.itemsize
        if at + size > len(data):
            raise WireError(f"cut off inside array {name[:40]!r}")
        arrays[name] = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
        at += size
    if at != len(data):
        raise WireError(f"{len(data) - at} bytes too many after the last array")
    return meta, arrays


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= 2
        and all(type(n) is int and 0 <= n < 2**31 for n in shape)
    )
