"""Decoding of rows of any length together, finished ones replaced.

The host only counts: it knows how far each row can be, hands free rows to waiting prompts, and
looks at which rows have finished every `Pace.interval` tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opd.models.cached_forward import decode_step, read_prompts, to_device
from opd.models.slab_cache import SlabCache
from opd.samplers.graphs import StepRunner
from opd.samplers.pace import Pace
from opd.samplers.rows import (
    ALIVE,
    POSITION,
    TOKEN,
    Job,
    Request,
    Rows,
    finished_rollout,
)
from opd.types import Rollout

_REFILL = 8  # free rows are refilled once they are 1 / 8 of all
_SPLIT = 4  # responses of one prompt start together unless they need more than 1 / 4 of the rows


@dataclass
class _Occupant:
    """What the host knows of a row: it may have finished without the host having looked."""

    request: Request
    slot: int
    sampled: int = 1

    @property
    def position(self) -> int:
        """Column of the token to be fed, at most."""
        return len(self.request.prompt.ids) + self.sampled - 1


class SlabDecoder:
    """Samples requests with at most `rows` at a time; see `opd.models.slab_cache`."""

    def __init__(self, job: Job, rows: int, longest: int, pace: Pace) -> None:
        """Allocate rows and cache.

        Args:
            job: the call of `sample`.
            rows: maximum rows.
            longest: tokens of the longest prompt.
            pace: of the host.
        """
        self.job, self.lm, self.pace, self.device = job, job.lm, pace, job.lm.device
        self.rows = Rows(job, rows)
        self.capacity = pace.column_count(longest + job.limit)
        columns = self.capacity if pace.growth is None else 0
        self.slabs = SlabCache(self.lm.config, rows, columns, self.device)
        # Weights that go away have other addresses afterwards; the hooks of sharded ones make other
        # streams wait, which would have to be joined before a capture ends.
        stays = self.lm.away is None and self.lm.sharded is None
        self.runner = StepRunner(self.device, graphs=pace.graphs and stays, name=self.lm.name)
        self.occupants: list[_Occupant | None] = [None] * rows
        self.slots = list(reversed(range(rows)))  # free ones
        self.width = 0  # rows of a step: the first ones
        self.waiting: deque[deque[Request]] = deque()
        self.reading: list[tuple[list[Request], Tensor]] = []  # on their way to the host

    def run(self, requests: Sequence[Request], rollouts: dict[int, Rollout]) -> None:
        """Sample requests, and add each rollout by its request's index as soon as it is known.

        Args:
            requests: in the order in which they start; those of one prompt side by side.
            rollouts: grows; what it holds when memory runs out need not be sampled again.
        """
        for request in requests:
            if not self.waiting or self.waiting[-1][-1].prompt is not request.prompt:
                self.waiting.append(deque())
            self.waiting[-1].append(request)
        try:
            while True:
                admitted = self._admit()
                alive = [row for row in self.occupants if row is not None]
                if not alive:
                    break
                left = self.job.limit - min(row.sampled for row in alive)
                # A look costs nothing on a CPU, and some may have ended at their first token.
                if left > 0 and not (admitted and self.pace.interval == 1):
                    self._decode(alive, min(self.pace.interval, left))
                self._look(rollouts)
                self._compact()
            if self.reading and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._collect(rollouts)
        finally:
            self.runner.release()
            self.slabs.release()

    def _admit(self) -> bool:
        """Hand free rows to waiting requests, if there are enough of both."""
        batch = self._take()
        start = 0
        while start < len(batch):
            longest, end = 0, start
            while end < len(batch):
                longest = max(longest, len(batch[end][0].prompt.ids))
                if end > start and longest * (end + 1 - start) > self.pace.prefill:
                    break
                end += 1
            self._prefill(batch[start:end])
            start = end
        return bool(batch)

    def _take(self) -> list[list[Request]]:
        """Requests to start now, by prompt."""
        count = len(self.occupants)
        free = sum(row is None for row in self.occupants)
        batch: list[list[Request]] = []
        if free < count and free < max(1, count // _REFILL):
            return batch
        while self.waiting and free:
            group = self.waiting[0]
            if free < len(group) <= count // _SPLIT:
                break
            batch.append([group.popleft() for _ in range(min(free, len(group)))])
            free -= len(batch[-1])
            if not group:
                self.waiting.popleft()
        return batch

    def _prefill(self, groups: Sequence[Sequence[Request]]) -> None:
        """Read one prompt per group for all its requests, and sample their first tokens."""
        requests = [request for group in groups for request in group]
        rows = [i for i, row in enumerate(self.occupants) if row is None][: len(requests)]
        slots = [self.slots.pop() for _ in requests]
        prompts = [group[0].prompt.ids for group in groups]
        of_prompt = [i for i, group in enumerate(groups) for _ in group]
        self._reserve(max(map(len, prompts)))
        index = to_device(np.array([rows, of_prompt], dtype=np.int64), self.device)
        state = self.rows.new_rows(requests, slots)
        filled = (index[0], index[1])
        hidden = read_prompts(self.lm, self.slabs, prompts, filled, state[POSITION] + 1)
        self.rows.sample(state, hidden)
        self.rows.state[:, index[0]] = state
        for row, slot, request in zip(rows, slots, requests, strict=True):
            self.occupants[row] = _Occupant(request, slot)
        self.width = max(self.width, self._width(1 + max(rows)))

    def _decode(self, alive: Sequence[_Occupant], count: int) -> None:
        needed = max(row.position for row in alive) + count
        columns = self.pace.column_count(min(needed, self.capacity))
        self._reserve(columns)
        self.runner.run(self._step, (self.width, columns), count)
        for row in alive:
            row.sampled = min(row.sampled + count, self.job.limit)

    def _step(self, rows: int, columns: int) -> None:
        """Feed each row's last token and sample the next; tensors at fixed addresses only."""
        state = self.rows.state[:, :rows]
        hidden = decode_step(self.lm, self.slabs, state[TOKEN], state[POSITION], columns)
        self.rows.sample(state, hidden)

    def _look(self, rollouts: dict[int, Rollout]) -> None:
        """Wait for the device, free the rows that have finished, have their tokens copied."""
        alive = self.rows.state[ALIVE, : self.width].tolist()
        self._collect(rollouts)  # copies that were begun at the last look are done
        finished = [
            (i, row) for i, row in enumerate(self.occupants) if row is not None and not alive[i]
        ]
        if not finished:
            return
        slots = [row.slot for _, row in finished]
        index = to_device(np.array(slots, dtype=np.int64), self.device)
        words = self.rows.tape.read(index, max(row.sampled for _, row in finished))
        self.reading.append(([row.request for _, row in finished], words))
        self.slots += slots
        for i, _ in finished:
            self.occupants[i] = None

    def _collect(self, rollouts: dict[int, Rollout]) -> None:
        for requests, words in self.reading:
            for request, row in zip(requests, words.numpy(), strict=True):
                rollout = finished_rollout(self.job, self.rows.tape, request, row)
                rollouts[request.index] = rollout
        self.reading.clear()

    def _compact(self) -> None:
        """Move the last rows to free places in front, so that a step has fewer rows."""
        alive = [i for i, row in enumerate(self.occupants) if row is not None]
        self.width = min(self.width, self._width(len(alive)))
        source = [i for i in alive if i >= self.width]
        if not source:
            return
        target = [i for i in range(self.width) if self.occupants[i] is None][: len(source)]
        index = to_device(np.array([source, target], dtype=np.int64), self.device)
        columns = min(self.slabs.columns, self.pace.column_count(self._longest() + 1))
        self.slabs.move(index[0], index[1], columns)
        self.rows.move(index[0], index[1])
        for old, new in zip(source, target, strict=True):
            self.occupants[new], self.occupants[old] = self.occupants[old], None

    def _longest(self) -> int:
        return max(row.position for row in self.occupants if row is not None)

    def _width(self, rows: int) -> int:
        return self.pace.row_count(rows, len(self.occupants))

    def _reserve(self, columns: int) -> None:
        if columns > self.slabs.columns:
            growth = self.pace.growth or 1
            self.slabs.reserve(min(self.capacity, -(-columns // growth) * growth))
