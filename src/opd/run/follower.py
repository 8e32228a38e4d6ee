"""A run folder as the other processes of a run see it: they read, one process writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.run.disk import DISK
from opd.run.folder import RunFolder
from opd.run.redact import redact
from opd.types import Graded, Rollout, Scores


class Follower(RunFolder):
    """Reads what the leading process wrote; everything that would write does nothing."""

    writes = False

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """Open what the leader has made; `config` as given to `RunFolder.create`."""
        super().__init__(path, json.loads(json.dumps(redact(dict(config)))), None, DISK)

    def log(self, step: int, values: Mapping[str, float | int | str | None]) -> None:
        """Left to the leader."""

    def time(self, step: int, values: Mapping[str, float | int | str | None]) -> None:
        """Left to the leader."""

    def alarm(self, record: Mapping[str, Any]) -> None:
        """Left to the leader."""

    def truncate_to(self, offsets: Mapping[str, int]) -> None:
        """Left to the leader."""

    def save_rollouts(
        self,
        step: int,
        batch: Sequence[Rollout],
        scores: Sequence[Scores],
        *,
        key: Mapping[str, Any],
        texts: Sequence[str] | None = None,
    ) -> None:
        """Left to the leader."""

    def thin_rollouts(self, upto_step: int, keep: int) -> None:
        """Left to the leader."""

    def keep_rollouts(self, step: int) -> Path:
        """Where the leader keeps them."""
        return self.path / "refused" / self._rollout_path(step).name

    def save_tokens(self, texts: Callable[[], Sequence[str]]) -> None:
        """Left to the leader."""

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Left to the leader."""

    def save_eval(
        self,
        step: int,
        name: str,
        result: Mapping[str, Any],
        samples: Sequence[Graded],
        *,
        key: Mapping[str, Any] | None = None,
    ) -> None:
        """Left to the leader."""
