"""Scores that are asked for before the step needs them: while other rollouts are still sampled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from opd.errors import UserError
from opd.http import Transient
from opd.teachers.dialect import Dialect
from opd.teachers.validate import WrongAnswer
from opd.types import Rollout, Scores, Want

logger = logging.getLogger(__name__)

Ask = Callable[[Sequence[Rollout], Want], list[Scores]]


class EarlyScores:
    """Requests under way, by rollout.

    Nothing is decided here: an answer that fails is not an answer, and whoever takes the others
    checks all of them together.
    """

    def __init__(self, dialect: Dialect, ask: Ask, concurrency: int) -> None:
        """Nothing is under way yet.

        Args:
            dialect: says which rollouts share a request.
            ask: one request, its answer checked.
            concurrency: maximum requests under way.
        """
        self.dialect, self.ask, self.concurrency = dialect, ask, concurrency
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, tuple[Rollout, Want, Future[list[Scores]], int]] = {}

    def begin(self, rollouts: Sequence[Rollout], want: Want) -> None:
        """Ask for scores of rollouts; returns at once."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="early")
        asked = [r for r in rollouts if len(r)]
        for batch in self.dialect.batches(asked):
            part = [asked[i] for i in batch]
            future = self._pool.submit(self.ask, part, want)
            for position, rollout in enumerate(part):
                # The rollout is kept with its request, so that no other has its id meanwhile.
                self._pending[id(rollout)] = rollout, want, future, position

    def take(self, rollouts: Sequence[Rollout], want: Want, scores: list[Scores | None]) -> None:
        """Put what was asked for in the same words into `scores`; the rest is forgotten.

        Args:
            rollouts: to be scored.
            want: what is asked of each.
            scores: one entry per rollout; those that are None may be filled.
        """
        pending, self._pending = self._pending, {}
        for i, rollout in enumerate(rollouts):
            entry = pending.get(id(rollout))
            if scores[i] is None and entry is not None and entry[1] == want:
                try:
                    scores[i] = entry[2].result()[entry[3]]
                except (Transient, WrongAnswer, UserError) as error:
                    logger.info("asked early, and to be asked again: %s", error)
        for _, _, future, _ in pending.values():
            future.cancel()
