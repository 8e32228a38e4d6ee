"""Time of a step: seconds by phase, tokens per second, peak memory of process and devices."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from opd.run.devices import MIB, peak_device_bytes, reset_peak

PhaseListener = Callable[[str, float | None], None]


class Clock:
    """Seconds spent in named phases since the last `take`."""

    def __init__(self, listener: PhaseListener | None = None) -> None:
        """Start now; `listener(phase, seconds)` is called when a phase begins (None) and ends."""
        self._listener = listener
        self._seconds: dict[str, float] = {}
        self._notes: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        started = time.monotonic()
        if self._listener is not None:
            self._listener(phase, None)
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds
            if self._listener is not None:
                self._listener(phase, seconds)

    def note(self, name: str, value: float) -> None:
        """Add a number to the values of this step, such as bytes per token."""
        self._notes[name] = value

    def take(self, tokens: float) -> dict[str, float]:
        """Return the values of a step for timings.jsonl, and start the next one.

        Args:
            tokens: completion tokens of the step.
        """
        now = time.monotonic()
        total, self._started = now - self._started, now
        phases, self._seconds = self._seconds, {}
        notes, self._notes = self._notes, {}
        # ru_maxrss is in KiB on Linux.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        if (on_device := peak_device_bytes()) is not None:
            notes = notes | {"memory/peak_device_mib": on_device / MIB}
            reset_peak()
        values = {f"time/{phase}_s": seconds for phase, seconds in phases.items()} | notes
        return values | {
            "time/step_s": total,
            "time/tokens_per_s": tokens / total if total else 0.0,
            "memory/peak_rss_mib": memory,
        }
