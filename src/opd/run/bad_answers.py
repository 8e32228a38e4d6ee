"""What a server said when it said something wrong: kept as it came, for a person to look at.

The bytes are hostile. They are never parsed here, files are named by us, and the folder is bounded:
the first wrong answers tell most, so later ones are dropped.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from opd.run.disk import make_folder, write_bytes, write_json

FOLDER = "wrong-answers"
MOST = 16 * 2**20  # bytes of the whole folder
LARGEST = 2**20  # bytes of one question or answer; the rest is cut off


class Exchange(NamedTuple):
    """One question to a server and its answer, as bytes."""

    path: str
    sent: bytes
    received: bytes


class Quarantine:
    """A bounded folder of wrong answers; safe to use from several threads and processes."""

    def __init__(self, folder: Path, *, most: int = MOST, largest: int = LARGEST) -> None:
        """Keep in `folder`, which appears with the first wrong answer."""
        self.folder, self.most, self.largest = folder, most, largest
        self._lock = threading.Lock()

    def keep(self, exchanges: Sequence[Exchange], why: str) -> str:
        """Write down what was asked and answered.

        Args:
            exchanges: of one request to the teacher, in order.
            why: the rule that was broken.

        Returns:
            A sentence for the error: where it is, or why it is not there.
        """
        if not exchanges:
            return ""
        parts = [(e, e.sent[: self.largest], e.received[: self.largest]) for e in exchanges]
        digest = hashlib.sha256(b"\0".join([why.encode(), *(r for _, _, r in parts)])).hexdigest()
        place = self.folder / digest[:12]
        size = sum(len(sent) + len(received) for _, sent, received in parts)
        try:
            with self._lock:
                if not place.exists() and self._used() + size > self.most:
                    return f" {self.folder} is full, so the answer was not kept; empty it."
                make_folder(place)
                for i, (_, sent, received) in enumerate(parts):
                    write_bytes(place / f"asked-{i}", sent)
                    write_bytes(place / f"answered-{i}", received)
                told = [
                    {"path": e.path, "bytes_sent": len(e.sent), "bytes_received": len(e.received)}
                    for e in exchanges
                ]
                write_json(place / "why.json", {"why": why, "exchanges": told})
        except OSError as error:
            return f" The answer could not be kept in {self.folder}: {error}."
        return f" The answer is kept in {place}."

    def _used(self) -> int:
        if not self.folder.is_dir():
            return 0
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
