"""A bound on the CPU time of foreign code that runs in this process, such as a chat template."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from opd.errors import UserError


@contextmanager
def cpu_limit(seconds: float, message: str) -> Iterator[None]:
    """Raise UserError if the block takes more CPU time; only the main thread can be bounded.

    Args:
        seconds: of CPU of this process.
        message: of the error.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "SIGVTALRM"
    ):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise UserError(message)

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
