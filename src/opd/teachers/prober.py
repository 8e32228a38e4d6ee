"""Requests of the handshake, and the results of its probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from opd.errors import UserError
from opd.http import clean
from opd.teachers.dialect import Canary, Dialect, TeacherRecord, request_scores, text_rollout
from opd.teachers.repeats import Noise
from opd.teachers.validate import WrongAnswer
from opd.types import Rollout, Scores, Want

QUOTED = 200  # bytes of a wrong answer quoted in the message

Level = Literal["ok", "note", "fatal"]


@dataclass(frozen=True, slots=True)
class Probe:
    """The result of one probe."""

    name: str
    level: Level
    message: str


@dataclass
class Handshake:
    """The results of all probes.

    Attributes:
        identity: what the server answered to `Dialect.identity`.
        probes: in the order in which they were made.
        noise_mean: mean difference, in nats per token, between two answers to one question.
        noise_max: the same, maximum.
        canary: a sequence by which the teacher is recognised; None where scoring failed.
    """

    identity: str = ""
    probes: list[Probe] = field(default_factory=list)
    noise_mean: float = 0.0
    noise_max: float = 0.0
    canary: Canary | None = None

    def add(self, name: str, level: Level, message: str) -> None:
        """Record one probe."""
        self.probes.append(Probe(name, level, message))

    def passed(self, name: str) -> bool:
        """Whether a probe was made and has level "ok"."""
        return any(p.name == name and p.level == "ok" for p in self.probes)

    @property
    def fatal(self) -> list[Probe]:
        """Probes whose failure forbids training."""
        return [p for p in self.probes if p.level == "fatal"]

    @property
    def teacher(self) -> TeacherRecord:
        """Which teacher this was."""
        return TeacherRecord(self.identity, self.canary, Noise(self.noise_mean, self.noise_max))

    def require(self, url: str) -> None:
        """Refuse a teacher that failed a probe.

        Raises:
            UserError: every failure with its fix.
        """
        if self.fatal:
            lines = "\n".join(f"  {p.name}: {p.message}" for p in self.fatal)
            raise UserError(f"The teacher at {url} is not fit to teach:\n{lines}")

    def to_json(self) -> dict[str, Any]:
        """The record of teacher.json; `TeacherRecord.from_json` reads it."""
        probes = [{"name": p.name, "level": p.level, "found": p.message} for p in self.probes]
        return {"probes": probes} | self.teacher.to_json()


@dataclass
class Prober:
    """Requests scores of probe sequences; a wrong answer becomes a failed probe.

    Attributes:
        dialect: client of the server.
        result: where probes are recorded.
        vocab: number of token ids in use.
        topk: top tokens asked for beside every sampled token.
        eos: an id that ends a completion, or none.
    """

    dialect: Dialect
    result: Handshake
    vocab: int
    topk: int = 0
    eos: tuple[int, ...] = ()

    def request(self, rollouts: list[Rollout], want: Want) -> list[Scores] | None:
        """Checked scores of `rollouts`; None, and a fatal probe, if an answer is wrong."""
        batches = self.dialect.batches(rollouts)
        scores: list[Scores] = []
        with self.dialect.http.capture() as exchanges:
            try:
                for batch in batches:
                    sequences = [rollouts[i] for i in batch]
                    scores += request_scores(self.dialect, sequences, want, self.vocab)
            except WrongAnswer as error:
                self._add_wrong_answer(error, exchanges[-1][2] if exchanges else b"")
                return None
        order = np.argsort([i for batch in batches for i in batch])
        return [scores[i] for i in order]

    def token_logp(self, sequences: Sequence[Sequence[int]]) -> list[np.ndarray] | None:
        """Log-probs of all tokens but the first of each sequence, in nats; None as `request`."""
        want = Want(sampled=True, topk=self.topk)
        scores = self.request([text_rollout(s) for s in sequences], want)
        if scores is None:
            return None
        return [s.sampled.astype(np.float64) for s in scores if s.sampled is not None]

    def score_once(self, sequence: Sequence[int]) -> np.ndarray | None:
        """As `token_logp` for one sequence, from any thread; None for a wrong answer."""
        rollout = text_rollout(sequence)
        try:
            (scores,) = request_scores(
                self.dialect, [rollout], Want(sampled=True, topk=self.topk), self.vocab
            )
        except WrongAnswer:
            return None
        assert scores.sampled is not None
        return scores.sampled.astype(np.float64)

    def _add_wrong_answer(self, error: WrongAnswer, answer: bytes) -> None:
        """Record it. There is no run folder yet to keep the answer in: its beginning is quoted."""
        is_json = answer.lstrip()[:1] in (b"{", b"[")
        quote = f" The answer begins: {clean(answer[:QUOTED])}" if is_json else ""
        fix = "Nothing can be trained on that; vLLM and `opd serve-teacher` give good scores."
        self.result.add("answers", "fatal", f"{error}. {fix}{quote}")
