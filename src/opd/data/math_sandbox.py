"""A child process that compares two mathematical expressions, and is killed at its time limit.

JSON lines over pipes, one request at a time. The child (`math_worker.py`) is started by its file,
so it imports neither torch nor anything else of opd. A process pool does not do: its children
inherit the environment with its API keys, and what they send is unpickled.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
import weakref
from pathlib import Path

from opd.data.answers import MAX_ANSWER

WORKER = Path(__file__).with_name("math_worker.py")
START_LIMIT = 120.0  # seconds to import sympy on a busy machine; not part of a text's limit
MEMORY = 2 * 2**30  # bytes of address space
MAX_REPLY = 4096  # bytes
DIED = "the checker died"  # how the reason begins when the child has ended
EQUAL, NOT_EQUAL = "equal", "not equal"  # as math_worker.py, which imports nothing of opd, has them
# A process that reads hostile text gets no API keys.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "TMPDIR", "LD_LIBRARY_PATH")


class MathProcess:
    """The child, started when first needed and again after a kill."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.starts = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[..., MathProcess] | None = None

    def compare(self, text: str, answer: str, *, marked: bool) -> tuple[bool, str]:
        """Compare two expressions.

        Args:
            text: the expression itself when `marked`, else a sentence that ends with it.
            answer: ground truth, LaTeX.
            marked: see `text`.

        Returns:
            Whether they are equal, and the reason.
        """
        if len(text) > MAX_ANSWER or len(answer) > MAX_ANSWER:
            return False, f"longer than {MAX_ANSWER} characters"
        child = self._running_child()
        request = json.dumps({"text": text, "answer": answer, "marked": marked}) + "\n"
        assert child.stdin is not None
        try:
            child.stdin.write(request.encode("ascii"))
            child.stdin.flush()
        except BrokenPipeError:
            self.close()
            return False, DIED
        line = self._read_line(child, self.limit)
        if line is None:
            self.close()
            return False, "timed out"
        if not line:
            self.close()
            return False, f"{DIED} (out of time or memory)"
        reply = json.loads(line)
        return bool(reply["equal"]), str(reply["reason"])

    def start(self) -> None:
        """Start the child, if it does not run; seconds, of which `limit` counts none."""
        self._running_child()

    def close(self) -> None:
        """Kill the child, if there is one."""
        if self._finalizer is not None:
            self._finalizer()
        self._child = self._finalizer = None

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is not None:
            return self._child
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-B", str(WORKER), str(MEMORY), str(self.limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        self.starts += 1
        self._finalizer = weakref.finalize(self, _kill, self._child)
        ready = self._read_line(self._child, START_LIMIT)
        if not ready or json.loads(ready) != {"ready": True}:
            self.close()
            raise RuntimeError(f"the math checker did not start: {ready!r}")
        return self._child

    @staticmethod
    def _read_line(child: subprocess.Popen[bytes], limit: float) -> bytes | None:
        """One line from the child; None when time is up, b"" when it has ended."""
        assert child.stdout is not None
        fd, deadline, line = child.stdout.fileno(), time.monotonic() + limit, b""
        while not line.endswith(b"\n"):
            seconds = deadline - time.monotonic()
            if seconds <= 0 or not select.select([fd], [], [], seconds)[0]:
                return None
            chunk = os.read(fd, MAX_REPLY)
            if not chunk or len(line) > MAX_REPLY:
                return b""
            line += chunk
        return line


def _kill(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # bytes it never read
                continue
