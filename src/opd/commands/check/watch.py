"""The clock of a check: a deadline that holds in the middle of a forward pass, and progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from threading import Thread
from typing import Any, TypeVar

import torch
from torch import nn

from opd.models.lm import LM

CTRL_C = "Ctrl-C"
HEARTBEAT = 10.0  # seconds between lines of progress
POLL = 0.2  # seconds between looks at the clock while a server works
T = TypeVar("T")


class OutOfTime(Exception):
    """The time of the check is over; what was measured before stands."""


class Watch:
    """Time since the models were loaded, looked at before every layer of every forward pass."""

    def __init__(self, show: Callable[[str], None], *, heartbeat: float = HEARTBEAT) -> None:
        """Start the clock, without a deadline.

        Args:
            show: prints a line of progress.
            heartbeat: seconds between lines.
        """
        self.started, self.deadline = time.monotonic(), math.inf
        self.stopped = ""  # why the check ended early, in words
        self._show, self._heartbeat = show, heartbeat
        self._stage, self._last_shown = "", self.started

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    @property
    def remaining(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def allowed(self) -> float:
        """From the start to the deadline."""
        return self.deadline - self.started

    def allow(self, seconds: float) -> None:
        """Set the deadline, from the start."""
        self.deadline = self.started + seconds

    def stage(self, text: str) -> None:
        """Name what begins, for the lines of progress."""
        self._stage = text
        self.tick()

    def tick(self) -> None:
        """Show progress if it is time.

        Raises:
            OutOfTime: it is past the deadline.
        """
        now = time.monotonic()
        if now - self._last_shown >= self._heartbeat:
            self._last_shown = now
            of = f" of {self.allowed:.0f}" if math.isfinite(self.deadline) else ""
            self._show(f"{self.seconds:.0f}{of} s: {self._stage}")
        if now > self.deadline:
            raise OutOfTime(self._stage)

    @contextmanager
    def evidence(self) -> Iterator[None]:
        """Let a block end early, at the deadline or at Ctrl-C; `stopped` says why."""
        try:
            yield
        except OutOfTime:
            self.stopped = f"the budget of {self.allowed:.0f} s"
        except KeyboardInterrupt:
            self.stopped = CTRL_C
            self._show("Stopped by Ctrl-C: the verdict that the evidence so far allows.")

    def during(self, call: Callable[[], T]) -> T:
        """Tick while a server works; at the deadline it is no longer waited for.

        Args:
            call: waits for the server, in a thread of its own.

        Returns:
            What `call` returns.

        Raises:
            OutOfTime: it is past the deadline.
        """
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised below
                future.set_exception(error)

        # Not a pool: its threads would be waited for when the process ends.
        Thread(target=work, name="check", daemon=True).start()
        while not future.done():
            self.tick()
            wait([future], timeout=POLL)
        return future.result()

    @contextmanager
    def attached(self, models: Sequence[LM]) -> Iterator[None]:
        """Tick before every layer of these models."""
        handles = [
            layer.register_forward_pre_hook(self._hook) for lm in models for layer in _layers(lm)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, module: nn.Module, arguments: Any) -> None:
        if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            self.tick()


def _layers(lm: LM) -> list[nn.Module]:
    """The layers of the backbone, or all of it where they are not found."""
    count = getattr(lm.config, "num_hidden_layers", None)
    for module in lm.causal.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    return [lm.causal.base_model]
