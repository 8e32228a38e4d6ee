"""Checkpoints: named tensors and JSON state, bit for bit, in folders that are complete or absent.

`step-N/` holds one safetensors file per group of tensors, `state.json`, a manifest of sizes and
hashes (see `manifest`). Nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from opd.errors import UserError
from opd.run.disk import CHUNK, DISK, FileOps, encode_json
from opd.run.manifest import Chunks, find_fault, list_checkpoints, save_files

log = logging.getLogger(__name__)

STATE = "state.json"
GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Tensors = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest verified.

    Attributes:
        step: number of optimizer steps done.
        path: its folder.
        skipped: newer, broken ones as (folder, reason), newest first.
    """

    step: int
    path: Path
    skipped: tuple[tuple[Path, str], ...] = ()

    def load(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Read what `save_tensors` was given: tensors by group, on the CPU, and the state."""
        tensors = {
            file.stem: safetensors.torch.load_file(file)
            for file in sorted(self.path.glob("*.safetensors"))
        }
        return tensors, json.loads((self.path / STATE).read_text("utf-8"))


def save_tensors(
    folder: Path,
    step: int,
    tensors: Tensors,
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    ops: FileOps = DISK,
) -> Path:
    """Write `folder/step-N` durably, verify it, then remove all but the newest `keep`.

    Args:
        folder: the run's `checkpoints` folder, created if absent.
        step: number of optimizer steps done.
        tensors: groups ("student", "optimizer") of named tensors; bits are preserved.
        state: JSON values.
        keep: complete checkpoints left afterwards, the new one included; at least 1.
        ops: the disk.

    Returns:
        The new checkpoint's folder.

    Raises:
        UserError: when the disk is full; checkpoints already there are untouched.
        OSError: when the disk fails otherwise, also with older checkpoints untouched.
        ValueError: for two names of one memory (tied weights): give each parameter once.
    """
    for group, named in tensors.items():
        if not GROUP.fullmatch(group):
            raise ValueError(f"{group!r} cannot name a group of tensors")
        _refuse_shared(named)
    text = encode_json(dict(state))
    files: dict[str, Chunks] = {f"{g}.safetensors": _encode(tensors[g]) for g in sorted(tensors)}
    files[STATE] = [text]
    size = sum(t.nbytes for named in tensors.values() for t in named.values()) + len(text)
    return save_files(folder, step, files, size=size, keep=keep, ops=ops)


def find_newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Find the newest checkpoint whose sizes and hashes verify; None when there is none at all.

    Broken ones are named with the reason in a warning and in `Checkpoint.skipped`.

    Raises:
        UserError: when there are checkpoints and every one is broken; starting afresh would
            destroy what the user may still want to inspect.
    """
    skipped: list[tuple[Path, str]] = []
    for step, path in list_checkpoints(folder):
        reason = find_fault(path)
        if reason is None:
            return Checkpoint(step, path, tuple(skipped))
        skipped.append((path, reason))
        log.warning("Skipping broken checkpoint %s: %s.", path, reason)
    if skipped:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in skipped)
        raise UserError(
            f"No checkpoint in {folder} is complete:\n{listed}\nRestore one, or start again with "
            "--overwrite."
        )
    return None


def _encode(named: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The safetensors file of `named` in chunks, so that no second copy of it is in memory."""
    # Widest first, as the library does, so that every tensor starts at a multiple of its width.
    order = sorted(named, key=lambda n: (-named[n].element_size(), n))
    header: dict[str, Any] = {}
    offset = 0
    for name in order:
        tensor = named[name]
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: no safetensors code for {tensor.dtype}")
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        flat = named[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel() == 0:
            continue
        data = flat.view(torch.uint8).numpy().data
        for start in range(0, len(data), CHUNK):
            yield data[start : start + CHUNK]


def _refuse_shared(named: Mapping[str, Tensor]) -> None:
    """Raise ValueError for two names of one memory: they would come back as two tensors."""
    spans = []
    for name, t in named.items():
        if t.numel():
            last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
            start = t.data_ptr()
            spans.append((str(t.device), start, start + (last + 1) * t.element_size(), name))
    spans.sort()
    for (device, _, end, name), (other_device, start, _, other) in pairwise(spans):
        if device == other_device and start < end:
            raise ValueError(f"{name!r} and {other!r} share memory: give each parameter once")
