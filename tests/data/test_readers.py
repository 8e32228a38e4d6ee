"""Rows come back as written; every error says where the file is broken."""

from __future__ import annotations

import csv
import importlib.util
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.data.readers import read_rows
from opd.errors import MissingDependency, UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
NAMES = st.lists(st.text("abcxyz_", min_size=1, max_size=6), min_size=1, max_size=4, unique=True)


@st.composite
def tables(draw):
    names = draw(NAMES)
    count = draw(st.integers(1, 6))
    return [{name: draw(TEXT) for name in names} for _ in range(count)]


def write(path, rows):
    """Write rows with each format's own library."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(rows[0]), quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(out.getvalue().encode())
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_bytes("\n".join(lines).encode())


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=tables())
def test_rows_come_back_as_written(tmp_path_factory, suffix, rows):
    path = tmp_path_factory.mktemp("rows") / f"prompts{suffix}"
    write(path, rows)
    found = read_rows(str(path))
    assert [row.values for row in found] == rows
    assert [row.index for row in found] == list(range(len(rows)))


@pytest.mark.parametrize(
    "data",
    [
        b'\xef\xbb\xbf{"prompt": "a"}\n{"prompt": "b"}\n',
        b'{"prompt": "a"}\r\n{"prompt": "b"}\r\n',
        b'\n\n{"prompt": "a"}\n   \n{"prompt": "b"}',
    ],
    ids=["byte order mark", "CRLF", "blank lines, no last newline"],
)
def test_harmless_oddities(tmp_path, data):
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    assert [row.values for row in read_rows(str(path))] == [{"prompt": "a"}, {"prompt": "b"}]


def test_a_line_separator_inside_a_string_is_no_new_row(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a\u2028b\x85c"}\n', encoding="utf-8")
    assert read_rows(str(path))[0].values == {"prompt": "a\u2028b\x85c"}


GOOD = b'{"prompt": "a"}\n'
BROKEN = [
    ("p.jsonl", GOOD * 2 + b'{"prompt": "b" "answer": 1}\n', r"line 3: expected one JSON object"),
    ("p.jsonl", GOOD + b'{"prompt": "b', r"line 2: expected one JSON object"),
    ("p.jsonl", GOOD + b"\n[1, 2]\n", r"line 3: expected one JSON object, found a list"),
    ("p.jsonl", GOOD + b'"text"\n', r"line 2: .*found text"),
    ("p.jsonl", GOOD + b"null\n", r"line 2: .*found null"),
    ("p.jsonl", b"{bad}\n" + GOOD + b"{bad}\n{bad}\n", r"line 1: .*\(3 lines are bad"),
    ("p.jsonl", GOOD + b'{"answer": NaN}\n', r"line 2: .*NaN is not JSON"),
    ("p.jsonl", GOOD + b'{"answer": ' + b"9" * 5000 + b"}\n", r"line 2: .*digits"),
    ("p.jsonl", GOOD + b"[" * 100_000, r"line 2: .*too deeply"),
    ("p.jsonl", GOOD + b'{"prompt": "\xff"}\n', r"line 2: not UTF-8 \(byte 0xff"),
    ("p.jsonl", GOOD + b'{"prompt": "\0"}\n', r"line 2: a NUL byte"),
    ("p.jsonl", '{"prompt": "a"}'.encode("utf-16"), r"line 1: a NUL byte.*UTF-16"),
    ("p.jsonl", GOOD + b'{"prompt": "a\tb"}', r"line 2: .*control character"),
    ("p.jsonl", b"", r"p.jsonl is empty"),
    ("p.jsonl", b" \r\n\n", r"p.jsonl is empty"),
    ("p.json", b'{"prompt": "a"}', r"a list of objects at the top, found an object"),
    ("p.json", b'[{"prompt": "a"}, 7]', r"row 1: expected an object, found a number"),
    ("p.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', r"not valid JSON, .* line 2, column"),
    ("p.json", GOOD * 2, r"Name the file .jsonl"),
    ("p.json", b"[]", r"p.json holds no rows"),
    ("p.json", b"[" * 100_000, r"too deeply"),
    ("p.csv", b"prompt,answer\na,1\nb,2,3\n", r"line 3: 3 fields, but the header has 2"),
    ("p.csv", b'prompt,answer\n"a\nb",1\nc\n', r"line 4: 1 fields"),
    ("p.csv", b'prompt,answer\n"a,1\n', r"line 2: not valid CSV"),
    ("p.csv", b"prompt,prompt\na,1\n", r"two columns share a name"),
    ("p.csv", b"prompt,answer\n", r"p.csv holds no rows"),
    ("p.csv", b"prompt\n" + b"x" * 200_000, r"line 2: not valid CSV: field larger"),
    ("p.parquet", b"PAR1 but no more", r"not a readable parquet file"),
    ("p.parquet", b"", r"not a readable parquet file"),
    ("p.txt", b"hello", r"by its suffix '.txt'.*\.jsonl"),
    ("prompts", b"hello", r"by its suffix ''"),
]


@pytest.mark.parametrize(("name", "data", "message"), BROKEN)
def test_broken_files_say_where(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(str(path))
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [("none/p.jsonl", r"No such file: none/p.jsonl"), ("hub:", "names no dataset")],
)
def test_files_that_are_not_there(path, message):
    with pytest.raises(UserError, match=message):
        read_rows(path)


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        read_rows(str(tmp_path))


@pytest.mark.skipif(
    importlib.util.find_spec("datasets") is not None, reason="the package datasets is installed"
)
def test_hub_datasets_say_what_to_install():
    with pytest.raises(MissingDependency, match=r"pip install 'opd\[hub\]'"):
        read_rows("hub:owner/name:train")
