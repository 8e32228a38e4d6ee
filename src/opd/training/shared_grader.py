"""Grades that all processes of a run share."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from opd.data.graders import Grade, Grader
from opd.training.distributed import Ranks


class SharedGrader(Grader):
    """A grader whose texts are divided among processes; every process gets all verdicts.

    A verdict may depend on a clock (kind `math`) or on a function of the user's. Processes that
    each graded everything would see other accuracies, and act on them differently.
    """

    def __init__(self, grader: Grader, ranks: Ranks) -> None:
        """Divide the texts of `grader`, which every process has."""
        super().__init__("exact")
        self.kind, self._grader, self._ranks = grader.kind, grader, ranks

    def close(self) -> None:
        """See `Grader.close`."""
        self._grader.close()

    def grade(self, texts: Sequence[str], answers: Sequence[str]) -> list[Grade]:
        """See `Grader.grade`.

        Raises:
            UserError: see `FunctionGrader.grade`; at every process.
        """

        def work() -> bytes:
            grades = self._grader.grade(*self._own(texts, answers))
            return json.dumps([[g.correct, g.extracted, g.reason] for g in grades]).encode()

        parts = [json.loads(part) for part in self._ranks.run_everywhere(work)]
        size = self._ranks.size
        return [Grade(*parts[i % size][i // size]) for i in range(len(texts))]

    def rewards(self, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """See `Grader.rewards`.

        Raises:
            UserError: see `FunctionGrader.rewards`; at every process.
        """

        def work() -> bytes:
            return self._grader.rewards(*self._own(texts, answers)).astype(np.float64).tobytes()

        rewards = np.empty(len(texts))
        for rank, part in enumerate(self._ranks.run_everywhere(work)):
            rewards[rank :: self._ranks.size] = np.frombuffer(part)
        return rewards

    def _own(
        self, texts: Sequence[str], answers: Sequence[str]
    ) -> tuple[Sequence[str], Sequence[str]]:
        first, step = self._ranks.rank, self._ranks.size
        return texts[first::step], answers[first::step]
