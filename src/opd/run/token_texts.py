"""The text of every token id, written once per run: reports show tokens without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from opd.run.disk import FileOps, write_bytes
from opd.run.parquet import from_parquet, read_texts, text_columns, to_parquet

TOKENS = "tokens.parquet"


def save(folder: Path, texts: Sequence[str], ops: FileOps) -> None:
    """Write `tokens.parquet`: row i is the text of token i."""
    columns = {"id": pa.array(range(len(texts)), pa.int32())} | text_columns({"text": list(texts)})
    write_bytes(folder / TOKENS, to_parquet(columns, {}), ops)


def load(folder: Path) -> list[str]:
    """The text of every token id.

    Raises:
        FileNotFoundError: the run wrote none.
        ValueError: the file is damaged.
    """
    table, _ = from_parquet((folder / TOKENS).read_bytes())
    return [text or "" for (text,) in read_texts(table, ["text"])]
