"""Several processes in one: ranks that run one after another, without any process group."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from opd.training.distributed import Ranks


class ReplayedRanks(Ranks):
    """Rank 0 of a group whose other ranks' messages are known."""

    messages: dict[int, list[bytes]]

    @classmethod
    def of(cls, messages: dict[int, list[bytes]]) -> ReplayedRanks:
        first = cls(0, len(messages) + 1)
        object.__setattr__(first, "messages", messages)
        return first

    def gather(self, data: bytes) -> list[bytes]:
        return [data if r == self.rank else self.messages[r].pop(0) for r in range(self.size)]


class _Recording(Ranks):
    """Stops at the first message of a rank, and hands it over."""

    def gather(self, data: bytes) -> list[bytes]:
        raise _Message(data)


class _Message(Exception):
    pass


def run_as_rank_zero(make: Callable[[Ranks], Any], size: int) -> Any:
    """Run `make(ranks)` as rank 0 of `size`, with each other rank's first message.

    The messages come from running `make` as those ranks up to their first gather.
    """
    messages = {}
    for rank in range(1, size):
        try:
            make(_Recording(rank, size))
        except _Message as message:
            messages[rank] = [message.args[0]]
        else:
            raise AssertionError(f"rank {rank} gathered nothing")
    return make(ReplayedRanks.of(messages))


def run_ranks(work: Callable[[Ranks], Any], size: int) -> list[Any]:
    """`work(ranks)` at every rank at the same time, in threads; the results in order of rank."""
    meeting, messages = Barrier(size, timeout=60), [b""] * size

    class Threaded(Ranks):
        def gather(self, data: bytes) -> list[bytes]:
            messages[self.rank] = data
            meeting.wait()
            gathered = list(messages)
            meeting.wait()
            return gathered

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(Threaded(rank, size)), range(size)))
