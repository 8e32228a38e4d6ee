"""One decoding step as a CUDA graph per size: a token costs one launch instead of thousands.

A graph replays the kernels that one step launched, on the same addresses: the step may only read
and write tensors that stay where they are, and may not wait for the device. Models whose code does
(data-dependent routing, rotary embeddings that grow) decode without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from opd.models.lm import is_out_of_memory

logger = logging.getLogger(__name__)

Step = Callable[[int, int], None]


class StepRunner:
    """Runs steps of (rows, columns), captured where that is possible."""

    def __init__(self, device: torch.device, *, graphs: bool, name: str) -> None:
        """Make a runner.

        Args:
            device: where steps run.
            graphs: whether to capture steps.
            name: of the model, for messages.
        """
        self.device, self.name, self.capturing = device, name, graphs
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}

    def run(self, step: Step, size: tuple[int, int], count: int) -> None:
        """Run `count` steps of one size.

        Args:
            step: one decoding step of so many rows over so many columns of the cache; always the
                same function.
            size: rows and columns.
            count: how many steps.
        """
        if self.capturing and count and size not in self.graphs:
            self._warm_up(step, size)
            count -= 1
            if count:
                self._try_capture(step, size)
        graph = self.graphs.get(size) if self.capturing else None
        for _ in range(count):
            if graph is not None:
                graph.replay()
            else:
                step(*size)

    def release(self) -> None:
        """Drop the graphs and the memory that they share."""
        for graph in self.graphs.values():
            graph.reset()
        self.graphs.clear()

    def _warm_up(self, step: Step, size: tuple[int, int]) -> None:
        """Run one step; libraries load kernels and take memory, which a capture does not allow."""
        stream, current = _stream(self.device), torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            step(*size)
        current.wait_stream(stream)

    def _try_capture(self, step: Step, size: tuple[int, int]) -> None:
        try:
            self.graphs[size] = self._capture(step, size)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._give_up(error)

    def _capture(self, step: Step, size: tuple[int, int]) -> torch.cuda.CUDAGraph:
        """Capture a step, which is not run by that."""
        graph, stream = torch.cuda.CUDAGraph(), _stream(self.device)
        pool = next((g.pool() for g in self.graphs.values()), None)  # one replays at a time
        # torch leaves a capture that fails without going back to the stream that was current.
        with (
            torch.cuda.stream(torch.cuda.current_stream(self.device)),
            torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
        ):
            step(*size)
        return graph

    def _give_up(self, error: RuntimeError) -> None:
        self.capturing = False
        if self.name not in _TOLD:
            _TOLD.add(self.name)
            logger.warning(
                "%s: a decoding step cannot be captured as a CUDA graph (%s); it runs kernel by "
                "kernel, which is slower and otherwise the same.",
                self.name,
                (str(error) or type(error).__name__).splitlines()[0],
            )


def was_captured(name: str) -> bool:
    """Whether no step of a model failed to be captured."""
    return name not in _TOLD


def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device on which steps are captured.

    There is one: cuBLAS takes a workspace for every stream that it is used on, 32 MiB on an H100.
    """
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]


_streams: dict[torch.device, torch.cuda.Stream] = {}
_TOLD: set[str] = set()  # models whose failed capture was reported
