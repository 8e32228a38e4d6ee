"""Results of an evaluation: a JSON file of the numbers, a parquet file of the graded samples."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from opd.run.disk import FileOps, encode_json, write_bytes, write_json
from opd.run.jsonl import json_restore, json_safe
from opd.run.parquet import from_parquet, read_texts, text_columns, to_parquet
from opd.types import Graded

log = logging.getLogger(__name__)

# What this module adds to a result; the rest of the JSON file is the result itself.
RESERVED = ("step", "name", "key", "samples_sha256", "sha256")


def save(
    path: Path,
    identity: Mapping[str, Any],
    result: Mapping[str, Any],
    samples: Sequence[Graded],
    ops: FileOps,
) -> None:
    """Write an evaluation; the JSON file is written last: with it the evaluation exists.

    Args:
        path: of the JSON file; the parquet file is beside it.
        identity: step, name and key of the evaluation.
        result: see `RunFolder.save_eval`.
        samples: see `RunFolder.save_eval`.
        ops: the disk.
    """
    if taken := set(RESERVED) & set(result):
        raise ValueError(f"{sorted(taken)} are reserved names of the file")
    data = _encode_samples(samples)
    record = json_safe(result)
    sha256 = hashlib.sha256(data).hexdigest()
    record |= {**identity, "samples_sha256": sha256}
    record["sha256"] = hashlib.sha256(encode_json(record)).hexdigest()
    write_bytes(path.with_suffix(".parquet"), data, ops)
    write_json(path, record, ops)


def load(path: Path, key: dict[str, Any]) -> tuple[dict[str, Any], list[Graded]] | None:
    """Read the JSON file `path` and the samples beside it; see `RunFolder.load_eval`."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
        data = path.with_suffix(".parquet").read_bytes()
        sha256 = record.pop("sha256")
        reserved = {k: record[k] for k in RESERVED if k != "sha256"}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning("Ignoring broken evaluation %s: %s.", path, error)
        return None
    actual = (hashlib.sha256(encode_json(record)), hashlib.sha256(data))
    if tuple(h.hexdigest() for h in actual) != (sha256, reserved["samples_sha256"]):
        log.warning("Ignoring broken evaluation %s: a sha256 differs.", path)
        return None
    if reserved["key"] != json.loads(json.dumps(key)):
        return None
    result = {k: v for k, v in record.items() if k not in RESERVED}
    return json_restore(result), _decode_samples(data)


def _encode_samples(samples: Sequence[Graded]) -> bytes:
    columns: dict[str, Any] = {
        "prompt_index": pa.array([g.prompt_index for g in samples], pa.int64()),
        "sample": pa.array([g.sample for g in samples], pa.int64()),
        "correct": pa.array([g.correct for g in samples], pa.bool_()),
        "length": pa.array([g.length for g in samples], pa.int64()),
        "finish": pa.array([g.finish for g in samples], pa.string()),
        "extra": pa.array([json.dumps(json_safe(g.extra)) for g in samples], pa.string()),
    }
    columns |= text_columns({"text": [g.text for g in samples]})
    return to_parquet(columns, {})


def _decode_samples(data: bytes) -> list[Graded]:
    table, _ = from_parquet(data)
    fields = ["prompt_index", "sample", "correct", "length", "finish"]
    texts = [text for (text,) in read_texts(table, ["text"])]
    extras = [json_restore(json.loads(e)) for e in table.column("extra").to_pylist()]
    return [
        Graded(**row, text=text or "", extra=extra)
        for row, text, extra in zip(table.select(fields).to_pylist(), texts, extras, strict=True)
    ]
