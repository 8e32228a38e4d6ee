"""What every kind of teacher server can be asked, and by what one teacher is recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from opd.http import Http
from opd.teachers.repeats import NO_NOISE, Noise
from opd.teachers.validate import WrongAnswer, check_answer
from opd.types import Kind, Rollout, Scores, Want


class Dialect(Protocol):
    """Client of one kind of server. Safe to use from several threads."""

    http: Http
    kinds: frozenset[Kind]
    context: int | None  # maximum tokens of prompt + completion

    def identity(self, *, once: bool = False) -> str:
        """Model name and whatever else distinguishes two teachers. `once`: no retries."""
        ...

    def tokenize(self, text: str) -> list[int] | None:
        """Ids of a text without special tokens; None where the server has no such route."""
        ...

    def batches(self, rollouts: Sequence[Rollout]) -> list[list[int]]:
        """Indices of rollouts that share a request."""
        ...

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """One request. Raises WrongAnswer, Transient or UserError."""
        ...


@dataclass(frozen=True, eq=False)
class Canary:
    """One fixed sequence with the teacher's first scores of it, to recognise the teacher by.

    Attributes:
        rollout: the sequence.
        sampled: log-probs (T,) of its tokens, in nats.
        tolerance: mean distance from `sampled`, in nats per token, of the same teacher.
    """

    rollout: Rollout
    sampled: np.ndarray
    tolerance: float

    def distance(self, scores: Scores) -> float:
        """Mean distance of new scores from the first ones, in nats per token."""
        assert scores.sampled is not None
        return float(np.abs(scores.sampled.astype(np.float64) - self.sampled).mean())


@dataclass(frozen=True, eq=False)
class TeacherRecord:
    """Which teacher a run began with: what `Dialect.identity` returned, canary and noise floor."""

    identity: str
    canary: Canary | None = None
    noise: Noise = NO_NOISE

    @property
    def fingerprint(self) -> str:
        """Identity and canary scores as one string; equal for equal teachers."""
        if self.canary is None:
            return self.identity
        scores = ",".join(f"{x:.1f}" for x in self.canary.sampled)
        return f"{self.identity} {scores}"

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        record: dict[str, Any] = {"identity": self.identity, "noise": self.noise._asdict()}
        canary = self.canary
        if canary is None:
            return record | {"canary": None}
        ids = [*canary.rollout.prompt.ids, *canary.rollout.ids.tolist()]
        values = {"ids": ids, "sampled": canary.sampled.tolist(), "tolerance": canary.tolerance}
        return record | {"canary": values}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TeacherRecord:
        """The inverse of `to_json`; other keys are ignored."""
        values, noise = record["canary"], Noise(**record.get("noise", {}))
        if values is None:
            return cls(record["identity"], noise=noise)
        rollout = text_rollout(values["ids"])
        canary = Canary(rollout, np.array(values["sampled"]), values["tolerance"])
        return cls(record["identity"], canary, noise)


def request_scores(
    dialect: Dialect, rollouts: Sequence[Rollout], want: Want, vocab: int
) -> list[Scores]:
    """One request whose answer is complete and passes `check_answer`.

    Raises:
        WrongAnswer: it is not, or does not.
    """
    answer = dialect.score(rollouts, want)
    if len(answer) != len(rollouts):
        raise WrongAnswer(f"{len(answer)} answers for {len(rollouts)} sequences")
    for rollout, scores in zip(rollouts, answer, strict=True):
        check_answer(scores, rollout, want, vocab)
    return answer


def text_rollout(ids: Sequence[int]) -> Rollout:
    """A text to score: its first token is the prompt, each other token is its own support."""
    rest = np.array(ids[1:], dtype=np.int32)
    return Rollout.of_ids(ids[:1], rest, topk_ids=rest[:, None])
