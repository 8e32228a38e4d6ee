"""One parquet file per step: rollouts, teacher scores and their texts, bit for bit.

Written before the update, so that a resumed step neither samples nor asks the teacher again.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from opd.rng import Stream, generator
from opd.run.disk import DISK, FileOps, remove, write_bytes
from opd.run.parquet import (
    array_columns,
    from_parquet,
    read_arrays,
    read_columns,
    read_texts,
    text_columns,
    to_parquet,
)
from opd.types import ALIGNMENT_FIELDS, SCORE_FIELDS, VIEW_FIELDS, Prompt, Rollout, Scores

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SCHEMA = 1
FILE = re.compile(r"step-(\d+)\.parquet")
TEXTS = ("prompt", "answer", "source", "completion")


@dataclass(frozen=True)
class StepFile:
    """The content of one step's file.

    Attributes:
        batch: rollouts.
        scores: of each rollout.
        texts: decoded completions, for readers of the file; None if they were not decoded.
        key: what the rollouts depend on, see `RunFolder.rollout_key`.
        thinned: only a sample of the rollouts is left, without hidden states.
        waits: the step has not begun: its rollouts were sampled ahead.
    """

    batch: list[Rollout]
    scores: list[Scores]
    texts: list[str] | None
    key: dict[str, Any]
    thinned: bool = False
    waits: bool = False


def encode(step: StepFile) -> bytes:
    """Encode the parquet file of one step.

    Raises:
        ValueError: when lengths differ, or one field has arrays of several dtypes.
    """
    batch, scores = step.batch, step.scores
    if len(scores) != len(batch) or (step.texts is not None and len(step.texts) != len(batch)):
        raise ValueError(f"{len(batch)} rollouts need one score (and text) each: {len(scores)}")
    columns: dict[str, Any] = {
        "prompt_index": pa.array([r.prompt.index for r in batch], pa.int64()),
        "sample": pa.array([r.sample for r in batch], pa.int64()),
        "version": pa.array([r.version for r in batch], pa.int64()),
        "finish": pa.array([r.finish for r in batch], pa.string()),
        "prompt_ids": pa.array([list(r.prompt.ids) for r in batch], pa.list_(pa.int32())),
    }
    texts: Sequence[str | None] = [None] * len(batch) if step.texts is None else step.texts
    columns |= text_columns(
        {
            "prompt": [r.prompt.text for r in batch],
            "answer": [r.prompt.answer for r in batch],
            "source": [r.prompt.source for r in batch],
            "completion": texts,
        }
    )
    for name, dims in _ROLLOUT_DIMS.items():
        columns |= array_columns(name, [getattr(r, name) for r in batch], dims)
    aligned = any(s.chunk is not None for s in scores)
    fields = {**_SCORE_DIMS, **(ALIGNMENT_FIELDS if aligned else {})}
    for name, dims in fields.items():
        columns |= array_columns(TEACHER + name, [getattr(s, name) for s in scores], dims)
    for name in VIEW_FIELDS:
        arrays = [None if s.view is None else getattr(s.view, name) for s in scores]
        columns |= array_columns(VIEW + name, arrays, SCORE_FIELDS[name])
    columns |= _encode_hidden([s.hidden for s in scores])
    meta = {"schema": SCHEMA, "key": step.key, "thinned": step.thinned}
    meta |= {"waits": True} if step.waits else {}
    return to_parquet(columns, meta)


def decode(data: bytes, *, hidden_states: bool = True) -> StepFile:
    """Decode the parquet file of one step.

    Args:
        data: what `encode` returned.
        hidden_states: whether to read them, which needs torch; otherwise they are None.

    Raises:
        ValueError: for a damaged file, or one of another schema.
    """
    table, meta = from_parquet(data)
    if meta["schema"] != SCHEMA:
        raise ValueError(f"schema {meta['schema']}, this opd reads {SCHEMA}")
    texts = read_texts(table, TEXTS)
    rollout_arrays = {n: read_arrays(table, n, d) for n, d in _ROLLOUT_DIMS.items()}
    score_arrays = {n: read_arrays(table, TEACHER + n, d) for n, d in _SCORE_DIMS.items()}
    if TEACHER + "chunk" in table.column_names:
        score_arrays |= {n: read_arrays(table, TEACHER + n, d) for n, d in ALIGNMENT_FIELDS.items()}
    views = _decode_views(table)
    hidden = _decode_hidden(table) if hidden_states else [None] * len(table)
    batch, scores = [], []
    for i, row in enumerate(table.select(_SCALARS).to_pylist()):
        text, answer, source, _ = texts[i]
        ids = tuple(row["prompt_ids"])
        prompt = Prompt(row["prompt_index"], ids, text or "", answer, source or "")
        fields: dict[str, Any] = {n: row[n] for n in ("sample", "finish", "version")}
        fields |= {n: arrays[i] for n, arrays in rollout_arrays.items()}
        batch.append(Rollout(prompt=prompt, **fields))
        score_fields: dict[str, Any] = {n: arrays[i] for n, arrays in score_arrays.items()}
        scores.append(Scores(**score_fields, hidden=hidden[i], view=views[i]))
    completions = [t[3] for t in texts if t[3] is not None]
    decoded = completions if len(completions) == len(texts) else None
    waits = meta.get("waits", False)
    return StepFile(batch, scores, decoded, meta["key"], meta["thinned"], waits)


def read_step(path: Path) -> tuple[list[Rollout], list[Scores]]:
    """Read a step file, complete or thinned, of any run: for analysis, not for resuming.

    Raises:
        ValueError: for a damaged file.
    """
    step = decode(path.read_bytes())
    return step.batch, step.scores


@dataclass(frozen=True)
class Completion:
    """What people read of a rollout.

    Attributes:
        prompt: text of the prompt.
        answer: ground truth; empty if there is none.
        text: of the completion; None if it was not decoded.
        tokens: length.
    """

    prompt: str
    answer: str
    text: str | None
    tokens: int


def read_completions(path: Path, most: int) -> list[Completion]:
    """The first rollouts of a step's file, without the numbers of their tokens.

    Raises:
        ValueError: for a damaged file.
        OSError: it cannot be read.
    """
    table = read_columns(path, [*TEXTS, "exact_texts", "ids"], most)
    lengths = table.column("ids").combine_chunks().value_lengths().to_pylist()
    rows = zip(read_texts(table, TEXTS), lengths, strict=True)
    return [
        Completion(prompt or "", answer or "", text, tokens or 0)
        for (prompt, answer, _, text), tokens in rows
    ]


def load(path: Path, key: Mapping[str, Any]) -> tuple[list[Rollout], list[Scores]] | None:
    """See `RunFolder.load_rollouts`."""
    step = _read(path)
    if step is None or step.thinned:
        return None
    expected = json.loads(json.dumps(dict(key)))
    if step.key != expected:
        log.warning("Not using %s: its key is %s, expected is %s.", path, step.key, expected)
        return None
    return step.batch, step.scores


def thin(folder: Path, upto_step: int, keep: int, ops: FileOps = DISK) -> None:
    """See `RunFolder.thin_rollouts`."""
    for path in sorted(folder.iterdir()):
        match = FILE.fullmatch(path.name)
        if not match or int(match[1]) > upto_step:
            continue
        step = _read(path) if keep > 0 else None
        if step is None:
            remove(path, ops)
            continue
        if step.thinned:
            continue
        kept = kept_indices(int(match[1]), len(step.batch), keep)
        texts = None if step.texts is None else [step.texts[i] for i in kept]
        scores = [replace(step.scores[i], hidden=None) for i in kept]
        thinned = StepFile([step.batch[i] for i in kept], scores, texts, step.key, thinned=True)
        write_bytes(path, encode(thinned), ops)


def kept_indices(step: int, count: int, keep: int) -> list[int]:
    """Which of the `count` rollouts of a step stay in the run folder: `keep` of them, sorted."""
    rng = generator(0, Stream.KEPT_ROLLOUTS, step, count)
    return sorted(rng.choice(count, size=min(keep, count), replace=False).tolist())


def _read(path: Path) -> StepFile | None:
    if not path.exists():
        return None
    try:
        return decode(path.read_bytes())
    except (OSError, ValueError) as error:
        log.warning("Ignoring broken rollout file %s: %s.", path, error)
        return None


TEACHER, VIEW = "teacher_", "view_"
_SCALARS = ["prompt_index", "prompt_ids", "sample", "finish", "version"]
_ROLLOUT_DIMS = {"ids": 1, "logp": 1, "entropy": 1, "topk_ids": 2, "topk_logp": 2}
_SCORE_DIMS = {**SCORE_FIELDS, "positions": 1}


def _decode_views(table: Any) -> list[Scores | None]:
    """`Scores.view` of every rollout; None in files of versions that did not keep it."""
    if VIEW + VIEW_FIELDS[0] not in table.column_names:
        return [None] * len(table)
    columns = {n: read_arrays(table, VIEW + n, SCORE_FIELDS[n]) for n in VIEW_FIELDS}
    views: list[Scores | None] = []
    for i in range(len(table)):
        fields: dict[str, Any] = {n: column[i] for n, column in columns.items()}
        views.append(None if all(x is None for x in fields.values()) else Scores(**fields))
    return views


def _tensor_bytes(tensor: torch.Tensor) -> bytes:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


def _encode_hidden(hidden: Sequence[torch.Tensor | None]) -> dict[str, Any]:
    raw = [None if h is None else _tensor_bytes(h) for h in hidden]
    shapes = [None if h is None else list(h.shape) for h in hidden]
    dtypes = [None if h is None else str(h.dtype).removeprefix("torch.") for h in hidden]
    return {
        "teacher_hidden": pa.array(raw, pa.large_binary()),
        "teacher_hidden_shape": pa.array(shapes, pa.list_(pa.int32())),
        "teacher_hidden_dtype": pa.array(dtypes, pa.string()),
    }


def _decode_hidden(table: Any) -> list[torch.Tensor | None]:
    names = ["teacher_hidden", "teacher_hidden_shape", "teacher_hidden_dtype"]
    rows = list(zip(*(table.column(n).to_pylist() for n in names), strict=True))
    if all(raw is None for raw, _, _ in rows):
        return [None] * len(rows)
    import torch

    dtypes = {"float64": torch.float64, "float32": torch.float32}
    dtypes |= {"bfloat16": torch.bfloat16, "float16": torch.float16}
    return [
        None
        if raw is None
        else torch.frombuffer(bytearray(raw), dtype=dtypes[dtype]).reshape(shape)
        if raw
        else torch.empty(shape, dtype=dtypes[dtype])
        for raw, shape, dtype in rows
    ]
