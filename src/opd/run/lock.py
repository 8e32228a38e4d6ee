"""One writer per run folder: a lock that the kernel frees when its holder dies, however it dies."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from pathlib import Path

import filelock

from opd.errors import UserError
from opd.run.layout import LOCK

log = logging.getLogger(__name__)

WAIT = 0.2  # seconds: `is_locked` in another process holds the lock for a moment
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """Holds `run.lock` of a folder until `release` or death; the file itself stays.

    A holder killed at any moment leaves nothing stale, and process ids that repeat do no harm: the
    id in the file is for the message alone.

    Raises:
        UserError: when another process, or this one, already writes the folder.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK
        # A soft lock, the file's mere existence, would outlive its holder.
        self._lock = filelock.FileLock(path, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire(timeout=WAIT, poll_interval=0.01)
        except filelock.Timeout:
            raise UserError(
                f"Another run is writing {folder}{_holder(path)}. Wait for it or stop it, or set "
                "output.dir to another folder."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "The file system of %s has no locks: make sure that only one run writes there.",
                folder,
            )
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))

    def release(self) -> None:
        """Let others write."""
        self._lock.release()


def is_locked(folder: Path) -> bool:
    """Whether a process writes the folder; changes nothing, and needs only to read."""
    try:
        with (folder / LOCK).open("rb") as file:  # closing it gives up a lock that was free
            return not filelock.lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        return False


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f" (process {holder['pid']} on {holder['host']})"
    except (ValueError, KeyError, TypeError):
        return ""
