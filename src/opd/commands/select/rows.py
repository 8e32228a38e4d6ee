"""The prompt file: kept rows as they were, with the reason and the measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from opd.commands.select.result import Selection, prompt_numbers
from opd.config import Run, Select
from opd.data.readers import read_rows, to_json_line
from opd.errors import UserError
from opd.run.disk import write_output


def output_rows(cfg: Run, spec: Select, selection: Selection) -> list[dict[str, Any]]:
    """The kept rows as they were, with `why` and `measured`."""
    rows = {row.index: row.values for row in read_rows(cfg.prompts.source)}
    aligned, kept = set(selection.aligned), []
    for index in sorted([*selection.aligned, *selection.others]):
        numbers = prompt_numbers(spec, selection, index)
        shown = ", ".join(f"{k.replace('_', ' ')} {v:.2f}" for k, v in numbers.items())
        why = "aligned" if index in aligned else "other: drawn from the rest"
        row = dict(rows[selection.prompts[index].index])
        kept.append(row | {"why": f"{why}; {shown}", "measured": numbers})
    return kept


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a prompt file, JSONL or parquet, that appears whole.

    Raises:
        UserError: rows that the format cannot hold, or a path that cannot be written.
    """
    try:
        if path.suffix == ".parquet":
            sink = pa.BufferOutputStream()
            columns = dict.fromkeys(name for row in rows for name in row)  # of any row
            whole = [{name: row.get(name) for name in columns} for row in rows]
            pq.write_table(pa.Table.from_pylist(whole), sink)
            data = sink.getvalue().to_pybytes()
        else:
            data = "".join(map(to_json_line, rows)).encode()
        write_output(path, data)
    except (OSError, pa.ArrowException, TypeError) as error:
        raise UserError(
            f"select.output={path} cannot be written: {error}. Try the other format (.jsonl or "
            ".parquet), or another folder."
        ) from None
