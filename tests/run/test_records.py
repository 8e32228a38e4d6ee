"""JSON lines: exact, never a NaN literal, and a half last line never read."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opd.errors import UserError
from opd.run.jsonl import Journal, encode_line, json_restore, json_safe, read_jsonl
from support.faulty_disk import Unsynced

# Keys without dots: NaNs are listed by dotted path.
KEYS = st.text('abé\n\ud800/"', max_size=4)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(KEYS, SCALARS, max_size=3)
RECORDS = st.dictionaries(KEYS, VALUES, max_size=4)
quick = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def exact(value):
    """repr tells 0.0 from -0.0, 1 from True and 1.0, and NaN is equal to itself."""
    if isinstance(value, dict):
        return {k: exact(v) for k, v in sorted(value.items())}
    return [exact(v) for v in value] if isinstance(value, list) else repr(value)


@quick
@given(RECORDS)
def test_any_record_survives(record):
    line = encode_line(record)
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert exact(json_restore(json.loads(line))) == exact(record)


@quick
@given(RECORDS)
def test_lines_are_strict_json(record):
    def refuse(literal):
        raise AssertionError(literal)

    json.loads(encode_line(record), parse_constant=refuse)


@quick
@given(RECORDS)
def test_equal_records_give_equal_bytes(record):
    backwards = dict(reversed(record.items()))
    assert encode_line(backwards) == encode_line(record)


def test_what_is_not_finite_is_listed():
    record = {"loss": math.nan, "deep": {"x": [1.0, -math.inf]}, "ok": None}
    assert json_safe(record) == {
        "loss": None,
        "deep": {"x": [1.0, None]},
        "ok": None,
        "nonfinite": {"loss": "nan", "deep.x.1": "-inf"},
    }
    assert json_safe({"loss": 0.5}) == {"loss": 0.5}
    with pytest.raises(ValueError, match="nonfinite"):
        json_safe({"nonfinite": 1})


@quick
@given(st.lists(RECORDS, max_size=5), st.data())
def test_a_file_cut_anywhere_gives_its_whole_lines(tmp_path, records, data):
    lines = [encode_line(r) for r in records]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path / "log.jsonl"
    path.write_bytes(whole[:cut])
    ends = [sum(map(len, lines[: i + 1])) for i in range(len(lines))]
    survivors = sum(end <= cut for end in ends)
    want = [exact(r) for r in records[:survivors]]
    assert [exact(json_restore(r)) for r in read_jsonl(path)] == want
    journal = Journal(path, Unsynced())
    journal.append({"next": 1})
    journal.close()
    assert [exact(json_restore(r)) for r in read_jsonl(path)] == [*want, exact({"next": 1})]


def test_zeros_after_a_power_cut_are_no_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bytes(50))
    assert read_jsonl(path) == [{"a": 1}]


def test_an_absent_file_has_no_records(tmp_path):
    assert read_jsonl(tmp_path / "absent") == []


@pytest.mark.parametrize("line", [b"{", b"", b"\xff\xfe", b"[1]", b"null"])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"log\.jsonl, line 2"):
        read_jsonl(path)


def test_what_json_cannot_hold_is_a_bug_of_ours():
    with pytest.raises(TypeError):
        encode_line({"a": object()})
