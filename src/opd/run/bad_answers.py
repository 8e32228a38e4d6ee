"""Wrong responses of a server, kept byte for byte for debugging.

The bytes are untrusted: they are never parsed here, the file names are ours, and the size of the
folder is bounded. The first wrong responses tell most, so later ones are dropped.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from opd.run.disk import make_folder, write_bytes, write_json

MAX_FOLDER_BYTES = 16 * 2**20
MAX_FILE_BYTES = 2**20  # of one request or response; the rest is cut off


class Exchange(NamedTuple):
    """One request to a server and its response, as bytes."""

    path: str
    sent: bytes
    received: bytes


class Quarantine:
    """A bounded folder of wrong responses; safe to use from several threads and processes."""

    def __init__(
        self,
        folder: Path,
        *,
        max_folder_bytes: int = MAX_FOLDER_BYTES,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        """Keep in `folder`, which is made at the first wrong response."""
        self.folder = folder
        self.max_folder_bytes, self.max_file_bytes = max_folder_bytes, max_file_bytes
        self._lock = threading.Lock()

    def keep(self, exchanges: Sequence[Exchange], why: str) -> str:
        """Write requests and responses to a folder of their own.

        Args:
            exchanges: of one call to the teacher, in order.
            why: the rule that was broken.

        Returns:
            A sentence for the error message: where they are, or why they were not kept.
        """
        if not exchanges:
            return ""
        limit = self.max_file_bytes
        files = [(e.sent[:limit], e.received[:limit]) for e in exchanges]
        digest = hashlib.sha256(b"\0".join([why.encode(), *(r for _, r in files)])).hexdigest()
        folder = self.folder / digest[:12]
        size = sum(len(sent) + len(received) for sent, received in files)
        try:
            with self._lock:
                if not folder.exists() and self._used_bytes() + size > self.max_folder_bytes:
                    return f" {self.folder} is full, so the answer was not kept; empty it."
                make_folder(folder)
                for i, (sent, received) in enumerate(files):
                    write_bytes(folder / f"asked-{i}", sent)
                    write_bytes(folder / f"answered-{i}", received)
                summaries = [
                    {"path": e.path, "bytes_sent": len(e.sent), "bytes_received": len(e.received)}
                    for e in exchanges
                ]
                write_json(folder / "why.json", {"why": why, "exchanges": summaries})
        except OSError as error:
            return f" The answer could not be kept in {self.folder}: {error}."
        return f" The answer is kept in {folder}."

    def _used_bytes(self) -> int:
        if not self.folder.is_dir():
            return 0
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
