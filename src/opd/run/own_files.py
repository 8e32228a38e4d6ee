"""The run's own files in a run folder: checked for links, and removed without touching others."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path

from opd.errors import UserError
from opd.run.disk import FileOps, remove, stale_entries
from opd.run.layout import CONFIG, ENV, LOCK, is_own_file, is_own_folder, own_entries

log = logging.getLogger(__name__)

REPORTS = ("report.html", "report.json")
SHOWN = 5  # paths named in a message


def check_kinds(folder: Path) -> None:
    """Refuse links, and folders in place of files or files in place of folders.

    A run folder from somebody else could otherwise make a run read, cut or write any file.

    Raises:
        UserError: naming the first of them.
    """
    for entry in own_entries(folder):
        mode = entry.path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise UserError(
                f"{entry.path} is a symbolic link. opd reads and writes no file of a run folder "
                "through a link: put the file itself there, or use another run folder. (The run "
                "folder as a whole may be a link.)"
            )
        if entry.folder != stat.S_ISDIR(mode) or not (entry.folder or stat.S_ISREG(mode)):
            kind = "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device"
            expected = "a folder" if entry.folder else "a file"
            raise UserError(
                f"{entry.path} is a {kind}, and a run has {expected} there. Move it elsewhere."
            )


def clear(folder: Path, ops: FileOps) -> list[Path]:
    """Delete a run, but nothing that it did not write.

    Checkpoints go first, so that an interrupted deletion never leaves one without its logs.
    What makes it a run folder stays, to be replaced: an interrupted deletion can be repeated.

    Returns:
        Files that are left because no run writes them.
    """
    kept = [folder / name for name in (LOCK, CONFIG, ENV)]
    names = sorted((p.name for p in folder.iterdir()), key=lambda n: (n != "checkpoints", n))
    for path in (folder / name for name in names):
        if path not in kept:
            remove_own(path, folder, ops)
    ops.sync_folder(folder)
    reports = [folder / name for name in REPORTS]  # replaced by the next report
    return [p for p in all_files(folder) if p not in (*kept, *reports)]


def remove_own(path: Path, root: Path, ops: FileOps) -> None:
    """Remove a file or folder, except for what the run did not write.

    Args:
        path: in the run folder; what is not the run's own stays.
        root: the run folder.
        ops: the disk.
    """
    relative = path.relative_to(root).as_posix()
    if path.is_dir() and not path.is_symlink():
        if not is_own_folder(relative):
            return
        if all(is_own_file(p.relative_to(root).as_posix()) for p in all_files(path)):
            remove(path, ops)
            return
        for inner in sorted(path.iterdir()):
            remove_own(inner, root, ops)
    elif is_own_file(relative):
        remove(path, ops)


def all_files(folder: Path) -> Iterator[Path]:
    """Every file and link at any depth; links are not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from all_files(path)
        else:
            yield path


def sweep_own(folder: Path, root: Path, ops: FileOps) -> None:
    """Remove what dead processes left under temporary names of the run.

    Args:
        folder: whose entries are looked at; it may be absent.
        root: the run folder, whose lock the caller holds.
        ops: the disk.
    """
    for path in stale_entries(folder, exclusive=True):
        remove_own(path, root, ops)


def describe_left(paths: list[Path]) -> str:
    """A sentence on files that were left in place."""
    shown = ", ".join(map(str, paths[:SHOWN]))
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return f"Left in place, because no run wrote it: {shown}{more}."
