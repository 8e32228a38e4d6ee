"""Folders `step-N` that are complete or absent: manifest last, one rename, then pruning.

Handles files, not tensors (see `checkpoint`), and needs no torch. While `step-N` is being replaced
by another `step-N`, the first is named `step-N.old`.
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
    stale_entries,
    write_new,
)
from opd.run.env import package_versions
from opd.run.layout import is_checkpoint_file

log = logging.getLogger(__name__)

SCHEMA = 1
MANIFEST = "MANIFEST.json"
NAME = re.compile(r"step-(\d+)(\.old)?")
SLACK = 1 << 20  # headers, manifest, file-system blocks

Chunks = Iterable[bytes | memoryview]


def save_files(
    folder: Path, step: int, files: Mapping[str, Chunks], *, size: int, keep: int, ops: FileOps
) -> Path:
    """Write `folder/step-N` durably, verify it, then remove all but the newest `keep`.

    Args:
        folder: where the checkpoints are, created if absent.
        step: number of optimizer steps done.
        files: content by name, in chunks.
        size: bytes that must be free.
        keep: complete checkpoints left afterwards, the new one included; at least 1.
        ops: the disk.

    Raises:
        UserError: when the disk is full; checkpoints already there are untouched.
        OSError: when the disk fails otherwise, also with older checkpoints untouched.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint stays")
    make_folder(folder, ops)
    for entry in stale_entries(folder):
        if NAME.match(entry.name):
            remove(entry, ops)
    require_space(folder, size + SLACK, ops)
    tmp, final = folder / f"step-{step}.tmp-{os.getpid()}", folder / f"step-{step}"
    try:
        _write(tmp, step, files, ops)
        _publish(tmp, final, ops)
    except OSError as error:
        _remove_or_warn(tmp, ops)
        if error.errno in DISK_FULL:
            raise UserError(
                f"Disk full while saving {final}. Earlier checkpoints are complete. Free some "
                "space and run again with --resume."
            ) from error
        raise
    if reason := find_fault(final):
        raise OSError(f"{final} does not read back as written ({reason}); is the disk failing?")
    _prune(folder, step, keep, ops)
    return final


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint by name, newest first, `step-N.old` after `step-N`."""
    if not folder.is_dir():
        return []
    folders = [p for p in folder.iterdir() if p.is_dir() and not _is_foreign(p)]
    matches = [(NAME.fullmatch(p.name), p) for p in folders]
    ranked = [(int(m[1]), m[2] is None, p) for m, p in matches if m]
    return [(step, path) for step, _, path in sorted(ranked, reverse=True)]


def _is_foreign(path: Path) -> bool:
    """Whether a folder has files, and none of them is one that a checkpoint has."""
    names = [p.name for p in path.iterdir()]
    return bool(names) and not any(map(is_checkpoint_file, names))


def find_fault(path: Path, *, hashes: bool = True) -> str | None:
    """Verify a checkpoint folder against its manifest.

    Args:
        path: the folder.
        hashes: whether to compare sha256 sums too, not names and sizes alone.

    Returns:
        Why it cannot be trusted; None when it verifies.
    """
    try:
        return _compare_with_manifest(path, hashes)
    except OSError as error:
        return f"cannot be read: {error}"


def _compare_with_manifest(path: Path, hashes: bool) -> str | None:
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
    match = NAME.fullmatch(path.name)
    if not match or step != int(match[1]):
        return f"{MANIFEST} is of step {step}"
    present = {f.name for f in path.iterdir()}
    if different := sorted(present ^ {*files, MANIFEST}):
        name = different[0]
        return f"{name} is {'missing' if name in files else 'not in ' + MANIFEST}"
    for name, (size, sha256) in files.items():
        actual = (path / name).stat().st_size
        if actual != size:
            return f"{name} has {actual} bytes, {MANIFEST} says {size}"
        if hashes and file_sha256(path / name) != sha256:
            return f"the sha256 of {name} is not the one in {MANIFEST}"
    return None


def _write(tmp: Path, step: int, files: Mapping[str, Chunks], ops: FileOps) -> None:
    ops.mkdir(tmp)
    entries: dict[str, dict[str, int | str]] = {}
    for name, chunks in files.items():
        sha256 = write_new(tmp / name, chunks, ops)
        entries[name] = {"size": (tmp / name).stat().st_size, "sha256": sha256}
    manifest = {"schema": SCHEMA, "step": step, "files": entries, "versions": package_versions()}
    write_new(tmp / MANIFEST, [encode_json(manifest)], ops)
    ops.sync_folder(tmp)


def _publish(tmp: Path, final: Path, ops: FileOps) -> None:
    if final.exists():
        old = final.with_name(f"{final.name}.old")
        if old.exists() and find_fault(final) is not None:
            remove(final, ops)
        else:
            if old.exists():
                remove(old, ops)
            ops.rename(final, old)
        ops.sync_folder(final.parent)
    ops.rename(tmp, final)
    ops.sync_folder(final.parent)


def _prune(folder: Path, step: int, keep: int, ops: FileOps) -> None:
    """Remove what the new checkpoint replaced, and older ones that are broken or beyond `keep`."""
    remaining = keep - 1
    for older, path in list_checkpoints(folder):
        if older > step or path.name == f"step-{step}":
            continue
        # An older one counts if names and sizes fit; the hashes of the new one were compared.
        if older < step and remaining > 0 and find_fault(path, hashes=False) is None:
            remaining -= 1
        elif other := next((p for p in path.iterdir() if not is_checkpoint_file(p.name)), None):
            log.warning("%s stays, because %s is not of a checkpoint.", path, other)
        else:
            _remove_or_warn(path, ops)


def _remove_or_warn(path: Path, ops: FileOps) -> None:
    """A failure is a warning: the new checkpoint is safe already."""
    try:
        if path.exists():
            remove(path, ops)
    except OSError as error:
        log.warning("Could not remove %s: %s.", path, error)
