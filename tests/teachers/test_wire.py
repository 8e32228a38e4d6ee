"""The message that carries requests, answers and cached scores: whole, or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from opd.teachers import wire

ARRAYS = {
    "a": np.arange(6, dtype=np.int32).reshape(2, 3),
    "b": np.array([0.1, -np.inf, np.nan], np.float32),
    "c": np.zeros((0, 7), np.float64),
}
MESSAGE = wire.pack({"k": 1}, ARRAYS)


def test_a_message_comes_back_bit_for_bit():
    header, arrays = wire.unpack(wire.pack({"x": [1, "y"]}, ARRAYS), ARRAYS)
    assert header == {"x": [1, "y"]}
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(MESSAGE) - 1), st.integers(0, 255), st.booleans())
def test_no_bytes_do_anything_but_parse_or_be_refused(index, value, cut):
    data = MESSAGE[:index] if cut else MESSAGE[:index] + bytes([value]) + MESSAGE[index + 1 :]
    try:
        _, arrays = wire.unpack(data, ARRAYS)
    except wire.WireError:
        return
    assert not cut
    assert sum(a.nbytes for a in arrays.values()) < len(data)


SIZES = st.sampled_from([-1, 0, 1, 2, 6, 24, 2**31, 2**62, 2**64, 1.5, "2", None, [], {}])
DTYPES = st.sampled_from(["I32", "F32", "F64", "I64", "U8", "BOOL", "BF16", "F8_E4M3", "F4", "O"])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([*ARRAYS, wire.HEADER]),
    DTYPES | SIZES,
    st.lists(SIZES, max_size=4),
    st.lists(SIZES, min_size=2, max_size=2),
)
def test_no_layout_does_anything_but_parse_or_be_refused(name, dtype, shape, offsets):
    length = int.from_bytes(MESSAGE[:8], "little")
    layout = json.loads(MESSAGE[8 : 8 + length])
    for change in ({"dtype": dtype}, {"shape": shape}, {"data_offsets": offsets}):
        text = json.dumps(layout | {name: layout[name] | change}).encode()
        data = len(text).to_bytes(8, "little") + text + MESSAGE[8 + length :]
        try:
            _, arrays = wire.unpack(data, ARRAYS)
        except wire.WireError:
            continue
        assert all(a.dtype in wire.DTYPES and a.ndim <= 2 for a in arrays.values())


def with_header(text: bytes, **arrays: np.ndarray) -> bytes:
    return save({wire.HEADER: np.frombuffer(text, np.uint8), **arrays})


def relabelled(data: bytes, dtype: str) -> bytes:
    """The message with array `b` declared as `dtype`."""
    length = int.from_bytes(data[:8], "little")
    layout = json.loads(data[8 : 8 + length])
    layout["b"]["dtype"] = dtype
    text = json.dumps(layout).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


REFUSED = {
    "not a safetensors message": b"OPDF\x10\0\0\0{}",
    "cut off": MESSAGE[:-1],
    "damaged or cut off": MESSAGE + b"x",
    "no header": save({"a": ARRAYS["a"]}),
    "NaN is not a JSON number": with_header(b'{"temperature": NaN}'),
    "-Infinity is not a JSON number": with_header(b'{"temperature": -Infinity}'),
    "recursion": with_header(b"[" * 100_000),
    "no JSON object": with_header(b"[1]"),
    "unknown array 'd'": with_header(b"{}", d=np.zeros(1, np.int32)),
    "dtype int64": with_header(b"{}", a=np.zeros(1, np.int64)),
    "3 dimensions": with_header(b"{}", a=np.zeros((1, 1, 1), np.int32)),
    "a dtype that numpy lacks": relabelled(with_header(b"{}", b=np.zeros(2, np.float16)), "BF16"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_wrong_with_a_message_is_named(words):
    with pytest.raises(wire.WireError, match=words):
        wire.unpack(REFUSED[words], ARRAYS)


def test_too_many_arrays_are_refused():
    arrays = {f"x{i}": np.zeros(1, np.int32) for i in range(wire.MAX_ARRAYS + 1)}
    with pytest.raises(wire.WireError, match="more than 32 arrays"):
        wire.unpack(wire.pack({}, arrays), arrays)
