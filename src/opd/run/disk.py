"""Durable file operations: a file under its name is complete, or it is not there.

Every operation goes through `FileOps`, so that tests can fail or kill the N-th one, and a process
that must not write gets `READ_ONLY`, which changes nothing. Temporary names end in `.tmp-<pid>`;
readers ignore them and `sweep` removes what dead processes left.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from opd.errors import UserError

TMP = re.compile(r"\.tmp-(\d+)$")
CHUNK = 1 << 22
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# A symbolic link in place of a file is an error, and a named pipe does not wait for a reader.
NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class FileOps:
    """The operations that change a disk, one system call or a few each.

    Attributes:
        writes: False where they change nothing.
    """

    writes = True

    def mkdir(self, path: Path) -> None:
        """Create one folder; fine if it exists."""
        path.mkdir(exist_ok=True)

    def create(self, path: Path) -> int:
        """Open a file for writing from its start and return its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | NO_LINKS, 0o644)

    def append(self, path: Path) -> int:
        """Open a file for appending and return its descriptor."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINKS, 0o644)

    def write(self, fd: int, data: bytes | memoryview) -> None:
        """Write all of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def truncate(self, path: Path, size: int) -> None:
        """Cut a file to `size` bytes."""
        fd = os.open(path, os.O_WRONLY | NO_LINKS)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def fsync(self, fd: int) -> None:
        """Wait until the file's bytes are on the disk."""
        os.fsync(fd)

    def sync_folder(self, path: Path) -> None:
        """Wait until the folder's names are on the disk."""
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """Move a file (replacing `new`) or a folder (`new` absent or empty)."""
        os.replace(old, new)

    def unlink(self, path: Path) -> None:
        """Remove one file or symbolic link."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove one empty folder."""
        path.rmdir()

    def free(self, path: Path) -> int:
        """Free bytes on the disk that holds `path`."""
        return shutil.disk_usage(path).free


class ReadOnlyOps(FileOps):
    """Operations without effect, for the processes of a run that only read its folder."""

    writes = False

    def mkdir(self, path: Path) -> None:
        """Create nothing."""

    def create(self, path: Path) -> int:
        """Return a descriptor whose bytes go nowhere."""
        return os.open(os.devnull, os.O_WRONLY)

    def append(self, path: Path) -> int:
        """Return a descriptor whose bytes go nowhere."""
        return os.open(os.devnull, os.O_WRONLY)

    def write(self, fd: int, data: bytes | memoryview) -> None:
        """Write nothing."""

    def truncate(self, path: Path, size: int) -> None:
        """Cut nothing."""

    def fsync(self, fd: int) -> None:
        """Wait for nothing."""

    def sync_folder(self, path: Path) -> None:
        """Wait for nothing."""

    def rename(self, old: Path, new: Path) -> None:
        """Move nothing."""

    def unlink(self, path: Path) -> None:
        """Remove nothing."""

    def rmdir(self, path: Path) -> None:
        """Remove nothing."""


DISK = FileOps()
READ_ONLY = ReadOnlyOps()


def make_folder(path: Path, ops: FileOps = DISK) -> None:
    """Create a folder and its parents, durably."""
    missing = [p for p in (path, *path.parents) if not p.is_dir()]
    for folder in reversed(missing):
        ops.mkdir(folder)
        ops.sync_folder(folder.parent)


def write_new(path: Path, chunks: Iterable[bytes | memoryview], ops: FileOps = DISK) -> str:
    """Write a file in place and fsync it.

    Not atomic: for files inside a folder that is renamed when it is complete. See `write_bytes`.

    Returns:
        The sha256 of the bytes that were passed in, whatever the disk made of them.
    """
    digest = hashlib.sha256()
    fd = ops.create(path)
    try:
        for chunk in chunks:
            digest.update(chunk)
            ops.write(fd, chunk)
        ops.fsync(fd)
    finally:
        os.close(fd)
    return digest.hexdigest()


def write_bytes(path: Path, data: bytes, ops: FileOps = DISK) -> None:
    """Replace a file in one step: readers see the old bytes or the new ones, never a part.

    An error or an interrupt leaves no temporary file.
    """
    tmp = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        write_new(tmp, [data], ops)
        ops.rename(tmp, path)
    except (Exception, KeyboardInterrupt, SystemExit):
        with contextlib.suppress(OSError):
            ops.unlink(tmp)
        raise
    ops.sync_folder(path.parent)


def write_output(path: Path, data: bytes) -> None:
    """As `write_bytes`, outside of a run folder; makes the folder of the file.

    Temporary files of this name that killed processes left are removed.
    """
    make_folder(path.parent)
    for entry in stale_entries(path.parent):
        if TMP.sub("", entry.name) == path.name:
            remove(entry)
    write_bytes(path, data)


def write_json(path: Path, value: Any, ops: FileOps = DISK) -> None:
    """Replace a JSON file in one step.

    Raises:
        ValueError: for NaN and infinities, which JSON cannot hold.
    """
    write_bytes(path, encode_json(value), ops)


def encode_json(value: Any) -> bytes:
    """JSON with sorted keys, ASCII only, floats in their shortest exact form."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def remove(path: Path, ops: FileOps = DISK) -> None:
    """Remove a file or folder; a folder is renamed first, so nobody sees half of it."""
    if not ops.writes:  # the walk below would look for the folder under its new name
        return
    if path.is_symlink() or not path.is_dir():
        ops.unlink(path)
        return
    if not TMP.search(path.name):
        trash = path.with_name(f"{path.name}.trash.tmp-{os.getpid()}")
        ops.rename(path, trash)
        ops.sync_folder(path.parent)
        path = trash
    _remove_tree(path, ops)


def _remove_tree(path: Path, ops: FileOps) -> None:
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            _remove_tree(entry, ops)
        else:
            ops.unlink(entry)
    ops.rmdir(path)


def process_exists(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sweep(folder: Path, *, ops: FileOps = DISK) -> None:
    """Remove temporary files and folders of dead processes and of this one.

    Args:
        folder: of opd alone, whose entries are looked at; it may be absent.
        ops: the disk.
    """
    for entry in stale_entries(folder):
        remove(entry, ops)


def stale_entries(folder: Path, *, exclusive: bool = False) -> list[Path]:
    """Entries under temporary names that no other process is writing.

    Args:
        folder: whose entries are looked at; it may be absent.
        exclusive: the caller holds the lock of the run folder, so every temporary entry is stale
            whatever its process id says (ids repeat in containers).
    """
    if not folder.is_dir():
        return []
    matches = [(TMP.search(entry.name), entry) for entry in sorted(folder.iterdir())]
    return [entry for m, entry in matches if m and (exclusive or _is_stale(int(m[1])))]


def _is_stale(pid: int) -> bool:
    return pid == os.getpid() or not process_exists(pid)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def require_space(path: Path, needed: int, ops: FileOps = DISK) -> None:
    """Check that `needed` bytes are free where `path` is, or will be.

    Raises:
        UserError: naming needed and free bytes.
    """
    folder = path.absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = ops.free(folder)
    if free < needed:
        raise UserError(
            f"Not enough disk space for {path}: {human_size(needed)} needed, "
            f"{human_size(free)} free. Free some, point output.dir to a bigger disk, or lower "
            "output.keep."
        )


def human_size(size: float) -> str:
    """A byte count with its unit, as in "1.5 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"
