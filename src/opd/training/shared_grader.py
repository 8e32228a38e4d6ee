"""Grades that all processes of a run share."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from opd.data.graders import Grade, Grader
from opd.training.distributed import Ranks


class SharedGrader(Grader):
    """A grader that rank zero asks; every process gets its verdicts.

    A verdict may depend on a clock (kind `math`) or on a function of the user's. Processes that
    each had their own would see other accuracies, and act on them differently.
    """

    def __init__(self, grader: Grader, ranks: Ranks) -> None:
        """Let rank zero ask `grader`, which every process has."""
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
            if not self._ranks.is_main:
                return b""
            grades = self._grader.grade(texts, answers)
            return json.dumps([[g.correct, g.extracted, g.reason] for g in grades]).encode()

        return [Grade(*row) for row in json.loads(self._ranks.run_everywhere(work)[0])]

    def rewards(self, texts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """See `Grader.rewards`.

        Raises:
            UserError: see `FunctionGrader.rewards`; at every process.
        """

        def work() -> bytes:
            if not self._ranks.is_main:
                return b""
            return self._grader.rewards(texts, answers).astype(np.float64).tobytes()

        return np.frombuffer(self._ranks.run_everywhere(work)[0], dtype=np.float64).copy()
