"""The prompt file of a selection can be read again, with everything its rows had."""

from __future__ import annotations

import datetime
import math

import pytest

from opd.commands.select.rows import write_rows
from opd.data.prompts import answer_of
from opd.data.readers import Row, read_rows

ROWS = [
    {"problem": "a", "why": "aligned"},
    {"problem": "b", "why": "aligned", "answer": "2", "hint": "count"},
]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_that_the_first_row_lacks_are_kept(tmp_path, suffix):
    """A parquet file had the columns of its first row alone: answers and hints were lost."""
    path = tmp_path / f"kept.{suffix}"
    write_rows(path, ROWS)
    last = read_rows(str(path))[1]
    assert (last.values["hint"], answer_of(last)) == ("count", "2")


def test_a_row_with_what_json_lacks_is_written_so_that_it_can_be_read(tmp_path):
    day = datetime.date(2024, 5, 1)
    row = ROWS[1] | {"level": math.nan, "of": [1.0, math.inf], "day": day}
    write_rows(tmp_path / "kept.jsonl", [row])
    (again,) = read_rows(str(tmp_path / "kept.jsonl"))
    assert again.values == ROWS[1] | {"level": None, "of": [1.0, None], "day": "2024-05-01"}


def test_nan_is_no_answer():
    assert answer_of(Row(0, "x.parquet, row 0", {"problem": "a", "answer": math.nan})) is None
