"""Folders `step-N` that are whole or absent: manifest last, one rename, old ones removed after.

Knows files, not tensors (see `checkpoint`), and needs no torch. While `step-N` is being replaced by
another `step-N`, the first is called `step-N.old`.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from opd.errors import UserError
from opd.run.disk import (
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
from opd.run.env import package_versions

log = logging.getLogger(__name__)

SCHEMA = 1
MANIFEST = "MANIFEST.json"
NAME = re.compile(r"step-(\d+)(\.old)?")
SLACK = 1 << 20  # headers, manifest, file-system blocks

Pieces = Iterable[bytes | memoryview]


def save_files(
    folder: Path, step: int, files: Mapping[str, Pieces], *, size: int, keep: int, ops: FileOps
) -> Path:
    """Write `folder/step-N` durably, verify it, then remove all but the newest `keep`.

    Args:
        folder: where the checkpoints are, created if absent.
        step: number of optimizer steps done.
        files: content by name, in pieces.
        size: bytes that must be free.
        keep: whole checkpoints left afterwards, the new one included; at least 1.
        ops: the disk.

    Raises:
        UserError: when the disk is full; checkpoints already there are untouched.
        OSError: when the disk fails otherwise, also with older checkpoints untouched.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint stays")
    make_folder(folder, ops)
    sweep(folder, ops=ops)
    require_space(folder, size + SLACK, ops)
    tmp, final = folder / f"step-{step}.tmp-{os.getpid()}", folder / f"step-{step}"
    try:
        _write(tmp, step, files, ops)
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


def candidates(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint by name, newest first, a replaced one after its heir."""
    if not folder.is_dir():
        return []
    found = [(NAME.fullmatch(p.name), p) for p in folder.iterdir() if p.is_dir()]
    ranked = [(int(m[1]), m[2] is None, p) for m, p in found if m]
    return [(step, path) for step, _, path in sorted(ranked, reverse=True)]


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
    there = {f.name for f in path.iterdir()}
    if odd := sorted(there ^ {*files, MANIFEST}):
        return f"{odd[0]} is {'missing' if odd[0] in files else 'not in ' + MANIFEST}"
    for name, (size, sha256) in files.items():
        actual = (path / name).stat().st_size
        if actual != size:
            return f"{name} has {actual} bytes, {MANIFEST} says {size}"
        if hashes and file_sha256(path / name) != sha256:
            return f"the sha256 of {name} is not the one in {MANIFEST}"
    return None


def _write(tmp: Path, step: int, files: Mapping[str, Pieces], ops: FileOps) -> None:
    ops.mkdir(tmp)
    listed: dict[str, dict[str, int | str]] = {}
    for name, pieces in files.items():
        sha256 = write_new(tmp / name, pieces, ops)
        listed[name] = {"size": (tmp / name).stat().st_size, "sha256": sha256}
    manifest = {"schema": SCHEMA, "step": step, "files": listed, "versions": package_versions()}
    write_new(tmp / MANIFEST, [encode_json(manifest)], ops)
    ops.sync_folder(tmp)


def _publish(tmp: Path, final: Path, ops: FileOps) -> None:
    if final.exists():
        old = final.with_name(f"{final.name}.old")
        if old.exists() and broken(final) is not None:
            remove(final, ops)
        else:
            if old.exists():
                remove(old, ops)
            ops.rename(final, old)
        ops.sync_folder(final.parent)
    ops.rename(tmp, final)
    ops.sync_folder(final.parent)


def _prune(folder: Path, step: int, keep: int, ops: FileOps) -> None:
    """Remove what the new one replaced, then older ones beyond `keep` and broken older ones."""
    left = keep - 1
    for older, path in candidates(folder):
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
