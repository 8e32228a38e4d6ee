"""Where the time of a step went: seconds by phase, tokens per second, peak memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[str, float | None], None]


class Clock:
    """Seconds spent in named phases since the last `take`."""

    def __init__(self, tell: Tell | None = None) -> None:
        """Start now; `tell` hears of each phase when it begins (None) and ends (seconds)."""
        self._tell = tell
        self._spent: dict[str, float] = {}
        self._noted: dict[str, float] = {}
        self._began = time.monotonic()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        began = time.monotonic()
        if self._tell is not None:
            self._tell(phase, None)
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self._spent[phase] = self._spent.get(phase, 0.0) + seconds
            if self._tell is not None:
                self._tell(phase, seconds)

    def note(self, name: str, value: float) -> None:
        """Put a number beside the times of this step, such as bytes a token."""
        self._noted[name] = value

    def take(self, tokens: float) -> dict[str, float]:
        """Values of one step for timings.jsonl, and start counting the next.

        Args:
            tokens: completion tokens of the step.
        """
        now = time.monotonic()
        total, self._began = now - self._began, now
        spent, self._spent = self._spent, {}
        noted, self._noted = self._noted, {}
        # ru_maxrss is in KiB on Linux.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        values = {f"time/{phase}_s": seconds for phase, seconds in spent.items()}
        return (
            values
            | noted
            | {
                "time/step_s": total,
                "time/tokens_per_s": tokens / total if total else 0.0,
                "memory/peak_rss_mib": memory,
            }
        )
