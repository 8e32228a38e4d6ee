"""One writer a run folder: a lock the kernel gives up when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from pathlib import Path

from opd.errors import UserError

log = logging.getLogger(__name__)

LOCK = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """Holds `run.lock` of a folder until `release` or death; the file itself stays.

    The kernel's lock decides, so a holder killed at any moment leaves nothing stale and ids that
    repeat do no harm; the process id in the file is for the message alone.

    Raises:
        UserError: when another process, or this one, already writes the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._fd)
            os.close(self._fd)
            raise UserError(
                f"Another run is writing {folder}{holder}. Wait for it or stop it, or set "
                "output.dir to another folder."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(self._fd)
                raise
            log.warning(
                "The file system of %s has no locks: make sure that only one run writes there.",
                folder,
            )
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text, 0)

    def release(self) -> None:
        """Let others write."""
        os.close(self._fd)


def _holder(fd: int) -> str:
    try:
        found = json.loads(os.pread(fd, 4096, 0))
        return f" (process {found['pid']} on {found['host']})"
    except (ValueError, KeyError, TypeError):
        return ""
