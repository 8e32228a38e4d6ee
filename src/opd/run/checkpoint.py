"""Checkpoints that are whole or absent: a folder that gets its name by one rename.

`step-N/` holds one safetensors file a group of tensors, `state.json`, and `MANIFEST.json` (sizes
and hashes), written last. While `step-N` is being replaced its predecessor is `step-N.old`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from opd.errors import UserError
from opd.run.files import (
    CHUNK,
    DISK,
    DISK_FULL,
    FileOps,
    encode_json,
    file_sha256,
    make_folder,
    remove,
    require_space,
    sweep,
    write_new,
)

log = logging.getLogger(__name__)

SCHEMA = 1
MANIFEST = "MANIFEST.json"
STATE = "state.json"
NAME = re.compile(r"step-(\d+)(\.old)?")
GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SLACK = 1 << 20  # headers, manifest, file-system blocks

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
        step: number of optimizer steps behind it.
        path: its folder.
        skipped: newer ones that are broken, as (folder, reason), newest first.
    """

    step: int
    path: Path
    skipped: tuple[tuple[Path, str], ...] = ()

    def load(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Read back what `save` was given: (tensors by group on the CPU, state)."""
        tensors = {
            file.stem: safetensors.torch.load_file(file)
            for file in sorted(self.path.glob("*.safetensors"))
        }
        return tensors, json.loads((self.path / STATE).read_text("utf-8"))


def save(
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
        keep: whole checkpoints left afterwards, the new one included; at least 1.
        ops: the disk.

    Returns:
        The new checkpoint's folder.

    Raises:
        UserError: when the disk is full; checkpoints already there are untouched.
        OSError: when the disk fails otherwise, also with older checkpoints untouched.
        ValueError: for two names of one memory (tied weights): give each parameter once.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint stays")
    for group, named in tensors.items():
        if not GROUP.fullmatch(group):
            raise ValueError(f"{group!r} is no name for a group of tensors")
        _refuse_shared(named)
    text = encode_json(dict(state))
    make_folder(folder, ops)
    sweep(folder, ops=ops)
    needed = sum(t.nbytes for named in tensors.values() for t in named.values())
    require_space(folder, needed + len(text) + SLACK, ops)
    tmp, final = folder / f"step-{step}.tmp-{os.getpid()}", folder / f"step-{step}"
    try:
        _write(tmp, step, tensors, text, ops)
        _publish(tmp, final, ops)
    except OSError as error:
        _remove_or_warn(tmp, ops)
        if error.errno in DISK_FULL:
            raise UserError(
                f"Disk full while saving {final}. Earlier checkpoints are whole. Free some space "
                "and run again with --resume."
            ) from error
        raise
    if reason := broken(final):
        raise OSError(f"{final} does not read back as written ({reason}); is the disk failing?")
    _prune(folder, step, keep, ops)
    return final


def newest(folder: Path) -> Checkpoint | None:
    """Find the newest checkpoint whose sizes and hashes verify; None when there is none at all.

    Broken ones are named with the reason in a warning and in `Checkpoint.skipped`.

    Raises:
        UserError: when there are checkpoints and every one is broken; starting afresh would
            then destroy what a person may still want to look at.
    """
    skipped: list[tuple[Path, str]] = []
    for step, path in _candidates(folder):
        reason = broken(path)
        if reason is None:
            return Checkpoint(step, path, tuple(skipped))
        skipped.append((path, reason))
        log.warning("Skipping broken checkpoint %s: %s.", path, reason)
    if skipped:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in skipped)
        raise UserError(
            f"No checkpoint in {folder} is whole:\n{listed}\nRestore one, or start again with "
            "--overwrite."
        )
    return None


def broken(path: Path, *, hashes: bool = True) -> str | None:
    """Why a checkpoint folder cannot be trusted, or None when its manifest verifies.

    `hashes=False` compares names and sizes only.
    """
    try:
        return _fault(path, hashes)
    except OSError as error:
        return f"cannot be read: {error}"


def _fault(path: Path, hashes: bool) -> str | None:
    if not (path / MANIFEST).is_file():
        return f"{MANIFEST} is missing"
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        schema, step = manifest["schema"], manifest["step"]
        files = {str(k): (int(v["size"]), str(v["sha256"])) for k, v in manifest["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{MANIFEST} is not a manifest"
    if schema != SCHEMA:
        return f"{MANIFEST} has schema {schema}, this opd reads {SCHEMA}"
    named = NAME.fullmatch(path.name)
    if not named or step != int(named[1]):
        return f"{MANIFEST} is of step {step}"
    if {f.name for f in path.iterdir()} != {*files, MANIFEST}:
        return f"its files are not those of {MANIFEST}"
    for name, (size, sha256) in files.items():
        actual = (path / name).stat().st_size
        if actual != size:
            return f"{name} has {actual} bytes, {MANIFEST} says {size}"
        if hashes and file_sha256(path / name) != sha256:
            return f"the sha256 of {name} is not the one in {MANIFEST}"
    return None


def _candidates(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint by name, newest first, a replaced one after its heir."""
    if not folder.is_dir():
        return []
    found = [(NAME.fullmatch(p.name), p) for p in folder.iterdir() if p.is_dir()]
    ranked = [(int(m[1]), m[2] is None, p) for m, p in found if m]
    return [(step, path) for step, _, path in sorted(ranked, reverse=True)]


def _write(tmp: Path, step: int, tensors: Tensors, text: bytes, ops: FileOps) -> None:
    ops.mkdir(tmp)
    sha256 = {f"{g}.safetensors": "" for g in sorted(tensors)}
    for group in sorted(tensors):
        name = f"{group}.safetensors"
        sha256[name] = write_new(tmp / name, _encode(tensors[group]), ops)
    sha256[STATE] = write_new(tmp / STATE, [text], ops)
    files = {n: {"size": (tmp / n).stat().st_size, "sha256": h} for n, h in sha256.items()}
    versions = {p: version(p) for p in ("opd", "torch", "transformers", "safetensors")}
    versions["python"] = platform.python_version()
    manifest = {"schema": SCHEMA, "step": step, "files": files, "versions": versions}
    write_new(tmp / MANIFEST, [encode_json(manifest)], ops)
    ops.sync_folder(tmp)


def _publish(tmp: Path, final: Path, ops: FileOps) -> None:
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        if broken(final) is None or not old.exists():
            if old.exists():
                remove(old, ops)
            ops.rename(final, old)
            ops.sync_folder(final.parent)
        else:
            remove(final, ops)
    ops.rename(tmp, final)
    ops.sync_folder(final.parent)


def _prune(folder: Path, step: int, keep: int, ops: FileOps) -> None:
    """Remove the heirs' predecessors, then older checkpoints beyond `keep` and broken ones."""
    left = keep - 1
    for older, path in _candidates(folder):
        if older > step or path.name == f"step-{step}":
            continue
        # An older one counts if it looks whole; its hashes need no reading, the new one's were.
        if older < step and left > 0 and broken(path, hashes=False) is None:
            left -= 1
        else:
            _remove_or_warn(path, ops)


def _remove_or_warn(path: Path, ops: FileOps) -> None:
    """Housekeeping never loses a checkpoint that is already safe, so its failure is a warning."""
    try:
        if path.exists():
            remove(path, ops)
    except OSError as error:
        log.warning("Could not remove %s: %s.", path, error)


def _encode(named: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The safetensors file of `named` in pieces, so that no second copy of it is in memory."""
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
    """Two names of one memory would come back as two tensors, no longer tied."""
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
