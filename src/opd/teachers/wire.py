"""The binary form of a scoring request, of its answer and of a cached entry: safetensors bytes.

Every array is a tensor under its own name; whatever is not an array is a JSON object, stored as
the bytes (uint8) of a tensor named `header`. Nothing in the format can be executed, and
`safetensors` accepts a message only if its tensors cover it to the last byte.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from opd.http import clean, parse_json

HEADER = "header"
DTYPES = tuple(np.dtype(t) for t in (np.int32, np.float32, np.float64))
MAX_LAYOUT = 1 << 16  # bytes of safetensors' own description of the tensors
MAX_ARRAYS = 32
MAX_DIMS = 2


class WireError(ValueError):
    """Bytes that are not a whole message."""


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Plain JSON values and arrays of int32, float32 or float64 as one message."""
    text = json.dumps(dict(header), allow_nan=False).encode("ascii")
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    assert HEADER not in tensors
    assert all(array.dtype in DTYPES for array in tensors.values())
    return bytes(safetensors.numpy.save({HEADER: np.frombuffer(text, np.uint8), **tensors}))


def unpack(data: bytes, names: Collection[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of `pack`: the JSON object and the arrays.

    Args:
        data: a message.
        names: of the arrays it may hold.

    Raises:
        WireError: anything but one whole message with these names, dtypes and sizes.
    """
    if len(data) < 8 or int.from_bytes(data[:8], "little") > MAX_LAYOUT:
        raise WireError(f"not a safetensors message: {len(data)} bytes that begin {data[:16]!r}")
    try:
        arrays: dict[str, np.ndarray] = safetensors.numpy.load(data)
        header = parse_json(arrays.pop(HEADER).tobytes())
    except (SafetensorError, ValueError) as error:
        raise WireError(f"damaged or cut off: {clean(str(error))[:200]}") from None
    except KeyError as error:
        raise WireError(f"damaged: no header, or a dtype that numpy lacks: {error}") from None
    if not isinstance(header, dict) or len(arrays) > MAX_ARRAYS:
        raise WireError(f"damaged: no JSON object, or more than {MAX_ARRAYS} arrays")
    for name, array in arrays.items():
        if name not in names:
            raise WireError(f"damaged: unknown array {clean(name)[:40]!r}")
        if array.dtype not in DTYPES or array.ndim > MAX_DIMS:
            raise WireError(f"damaged: {name} has dtype {array.dtype}, {array.ndim} dimensions")
    return header, arrays
