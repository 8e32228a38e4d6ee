"""The prompt file of a selection can be read again, with everything its rows had."""

from __future__ import annotations

import datetime
import math

import numpy as np
import pytest

from opd import config
from opd.commands.select.record import to_record
from opd.commands.select.result import Selection
from opd.commands.select.rows import write_rows
from opd.config import Select
from opd.data.duplicates import Leak
from opd.data.prompts import answer_of
from opd.data.readers import Row, read_rows
from opd.demo.run_config import demo_config
from opd.recipes.select import Measurements, Mixture, Ranking
from opd.types import Prompt

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


def test_a_prompt_in_several_evaluation_sets_is_counted_once(tmp_path):
    two = np.array([1.0, 0.0])
    selection = Selection(
        rows=4,
        leaks=[Leak(2, "a", 0, True), Leak(2, "b", 0, False), Leak(3, "b", 1, False)],
        repeats={},
        prompts=[Prompt(i, (1,), "") for i in range(2)],
        measurements=Measurements(*[two] * 5),
        ranking=Ranking(*[two] * 4),
        aligned=[0],
        others=[],
        mixture=Mixture([0.0, 1.0], [math.nan] * 2, [math.nan] * 2),
        template="",
        templates=[],
    )
    prompts = [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
    cfg = config.parse(demo_config(tmp_path / "run") | {"prompts": prompts})
    record = to_record(cfg, Select(output="kept.jsonl"), selection)
    assert "4 rows; 1 are in an evaluation set, 1 nearly so, 0 are repeated" in record["summary"][0]
    assert record["prompts"] == "a.jsonl, b.jsonl"
