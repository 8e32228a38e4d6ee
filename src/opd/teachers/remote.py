"""A teacher behind HTTP: concurrent requests, checked answers, and a pause when it is away.

What is particular to a server's API is a `Dialect` (`opd_api`, `vllm_api`). Whether the server is
fit to teach is found out before training (`handshake`); whether it is still the same teacher is
looked at after every batch of answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from opd.errors import UserError
from opd.http import Http, Transient, clean
from opd.run.bad_answers import Exchange, Quarantine
from opd.teachers.validate import WrongAnswer, check
from opd.types import Kind, Rollout, Scores, Want

logger = logging.getLogger(__name__)

SAY_EVERY = 10.0  # seconds between two lines of progress
ROUNDS = 3  # times a teacher may come back, answer probes, and still score nothing new


class TeacherDown(UserError):
    """The teacher stayed away longer than we wait; what it had scored is in `partial`."""

    def __init__(self, message: str, partial: list[Scores | None]) -> None:
        super().__init__(message)
        self.partial = partial


class Dialect(Protocol):
    """How one kind of server is asked. Safe to use from several threads."""

    http: Http
    kinds: frozenset[Kind]
    context: int | None  # longest prompt + completion it can score
    max_topk: int | None  # most top tokens it gives, where it says so

    def identity(self, *, once: bool = False) -> str:
        """Who answers: model name and whatever else tells two teachers apart."""
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
    """One fixed sequence with what the teacher said of it, to know the teacher again."""

    rollout: Rollout
    sampled: np.ndarray
    tolerance: float  # nats a token, mean

    def gap(self, scores: Scores) -> float:
        """Mean distance of new scores from the first ones, in nats."""
        assert scores.sampled is not None
        return float(np.abs(scores.sampled.astype(np.float64) - self.sampled).mean())


class ServerTeacher:
    """`opd.types.Teacher` for a model behind HTTP."""

    def __init__(
        self,
        dialect: Dialect,
        name: str,
        *,
        vocab: int,
        identity: str,
        canary: Canary | None = None,
        topk_for_diagnostics: int = 0,
        concurrency: int = 8,
        patience: float = 600.0,
        quarantine: Quarantine | None = None,
        say: Callable[[str], None] = logger.info,
        note: Callable[[str, float], None] = lambda name, value: None,
    ) -> None:
        """Make a teacher; see `opd.teachers.probes` for how one is tried first.

        Args:
            dialect: the server's API.
            name: the model's name.
            vocab: token ids in use.
            identity: what `dialect.identity()` said at the handshake.
            canary: a fixed sequence scored at the handshake.
            topk_for_diagnostics: the teacher's own top tokens asked for where full treatment is
                wanted, which a server cannot give.
            concurrency: most requests under way.
            patience: seconds to wait for a teacher that has gone away.
            quarantine: where wrong answers are kept.
            say: tells people about waiting.
            note: takes named numbers for the step's timings.
        """
        self.dialect, self.name, self.kinds = dialect, name, dialect.kinds
        self.vocab, self.identity, self.canary = vocab, identity, canary
        self.topk_for_diagnostics = topk_for_diagnostics
        self.concurrency, self.patience = concurrency, patience
        self.quarantine, self._say, self._note = quarantine, say, note
        self._timer = dialect.http.timer

    @property
    def fingerprint(self) -> str:
        """Identity and canary scores as one string; equal for equal teachers."""
        if self.canary is None:
            return self.identity
        heard = ",".join(f"{x:.1f}" for x in self.canary.sampled)
        return f"{self.identity} {heard}"

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`; full treatment becomes the teacher's own top tokens.

        Raises:
            TeacherDown: no answers for longer than `patience`.
            UserError: a refusal, an answer that stays wrong, or another teacher than before.
        """
        asked = served(want, self.topk_for_diagnostics)
        http, before = self.dialect.http, _Counts.of(self.dialect.http)
        found: list[Scores | None] = [
            _empty(r, asked, self.vocab) if not len(r) else None for r in rollouts
        ]
        fruitless, missing = 0, len(found)
        while (trouble := self._round(rollouts, asked, found) or self._recheck()) is not None:
            left = sum(s is None for s in found)
            fruitless, missing = (fruitless + 1 if left == missing else 0), left
            if fruitless >= ROUNDS:
                raise self._down(f"it answers probes, but not this: {trouble}", found)
            self._pause(trouble, found)
        self._account(before, _Counts.of(http), rollouts)
        return placed([s for s in found if s is not None], want)

    def _round(
        self, rollouts: Sequence[Rollout], want: Want, found: list[Scores | None]
    ) -> Transient | None:
        """Ask for everything missing; the failure that stopped it, or None."""
        missing = [i for i, s in enumerate(found) if s is None]
        batches = [
            [missing[j] for j in part]
            for part in self.dialect.batches([rollouts[i] for i in missing])
        ]
        halted, trouble = threading.Event(), None
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="teacher")
        try:
            waiting: dict[Future[list[Scores] | None], list[int]] = {
                pool.submit(self._ask, [rollouts[i] for i in part], want, halted): part
                for part in batches
            }
            spoken = self._timer.now()
            while waiting:
                done, _ = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    part = waiting.pop(future)
                    try:
                        answer = future.result()
                    except Transient as error:
                        halted.set()  # the others would run into the same wall
                        trouble = error
                        continue
                    if answer is not None:
                        for i, scores in zip(part, answer, strict=True):
                            found[i] = scores
                if waiting and self._timer.now() - spoken > SAY_EVERY:
                    spoken = self._timer.now()
                    self._say(f"waiting for teacher, {_progress(found)}")
        finally:
            halted.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return trouble

    def _ask(
        self, rollouts: Sequence[Rollout], want: Want, halted: threading.Event
    ) -> list[Scores] | None:
        """One request with its answer checked; a wrong answer gets one second chance."""
        for last in (False, True):
            if halted.is_set():
                return None
            try:
                return self._checked(rollouts, want)
            except WrongAnswer as error:
                if not last:
                    logger.warning("Teacher %s: %s. Asking once more.", self.name, error)
                    continue
                raise UserError(
                    f"The teacher {self.name} at {self.dialect.http.url} gave a wrong answer "
                    f"twice: {error}. Nothing was trained on it. Check the server, then "
                    "continue with `opd train ... --resume`."
                ) from None
        raise AssertionError("the second try returns or raises")

    def _checked(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """One request; a wrong answer is kept as it came.

        Raises:
            WrongAnswer: saying what is wrong, and where the answer is.
        """
        with self.dialect.http.capture() as heard:
            try:
                answer = self.dialect.score(rollouts, want)
                if len(answer) != len(rollouts):
                    raise WrongAnswer(f"{len(answer)} answers for {len(rollouts)} rollouts")
                for rollout, scores in zip(rollouts, answer, strict=True):
                    check(scores, rollout, want, self.vocab)
            except WrongAnswer as error:
                if self.quarantine is None:
                    raise
                kept = self.quarantine.keep([Exchange(*e) for e in heard], str(error))
                raise WrongAnswer(f"{error}.{kept}".removesuffix(".")) from None
        return answer

    def recognise(self) -> None:
        """Make sure the teacher is still the one of the handshake.

        Raises:
            UserError: it is another one, or answers a known question differently.
            Transient: it went away.
        """
        self._same_identity(self.dialect.identity())
        if self.canary is None:
            return
        want = Want(sampled=True)
        try:
            (scores,) = self._checked([self.canary.rollout], want)
        except WrongAnswer as error:
            raise UserError(
                f"The teacher at {self.dialect.http.url} answers a known question wrongly: {error}."
                " The scores of this step are not used."
            ) from None
        gap = self.canary.gap(scores)
        if gap > self.canary.tolerance:
            raise UserError(
                f"The teacher at {self.dialect.http.url} has changed: it scores the text of the "
                f"handshake {gap:.3g} nats a token differently ({self.canary.tolerance:.2g} is its "
                "noise). Another model, other weights or a broken cache answers under the same "
                "name. The scores of this step are not used. Start the first teacher again and "
                "continue with --resume, or begin a new run (output.dir)."
            )

    def _recheck(self) -> Transient | None:
        try:
            self.recognise()
        except Transient as error:
            return error
        return None

    def _same_identity(self, now: str) -> None:
        if now != self.identity:
            raise UserError(
                f"Another teacher answers at {self.dialect.http.url}: it was {self.identity!r} "
                f"and is {clean(now)!r}. The scores of this step are not used. Start the first one "
                "again and continue with --resume, or begin a new run (output.dir)."
            )

    def _pause(self, trouble: Transient, found: list[Scores | None]) -> None:
        """Wait until the teacher answers again, telling people; give up after `patience`."""
        began, delay = self._timer.now(), 2.0
        self._say(
            f"The teacher does not answer ({trouble}). Waiting for teacher, {_progress(found)}; "
            f"giving up after {self.patience:g} s."
        )
        spoken = began
        while self._timer.now() - began < self.patience:
            self._timer.sleep(min(delay, self.patience))
            delay = min(delay * 1.5, 30.0)
            try:
                now = self.dialect.identity(once=True)
            except Transient as error:
                if self._timer.now() - spoken > 6 * SAY_EVERY:
                    spoken = self._timer.now()
                    self._say(f"still waiting for teacher, {_progress(found)} ({error})")
                continue
            self._same_identity(now)
            self._say(f"The teacher answers again after {self._timer.now() - began:.0f} s.")
            return
        raise self._down(f"for {self.patience:g} s: {trouble}", found)

    def _down(self, why: str, found: list[Scores | None]) -> TeacherDown:
        return TeacherDown(
            f"The teacher {self.name} at {self.dialect.http.url} does not answer ({why}). "
            f"{_progress(found)}, and kept. Start it again, then `opd train ... --resume` "
            "continues where this run stopped; teacher.patience sets how long to wait.",
            found,
        )

    def _account(self, before: _Counts, after: _Counts, rollouts: Sequence[Rollout]) -> None:
        tokens = max(1, sum(len(r) for r in rollouts))
        self._note("teacher/bytes_received_per_token", (after.bytes_in - before.bytes_in) / tokens)
        self._note("teacher/bytes_sent_per_token", (after.bytes_out - before.bytes_out) / tokens)
        self._note("teacher/requests", after.requests - before.requests)
        self._note("teacher/retries", after.retries - before.retries)


def served(want: Want, topk: int) -> Want:
    """A request as a server can answer it: top tokens for the diagnostics instead of everything."""
    if want.full is None:
        return want
    topk = max(want.topk, topk)
    return want._replace(full=None, topk=topk, sampled=want.sampled or topk > 0)


def placed(scores: list[Scores], want: Want) -> list[Scores]:
    """Scores with the positions that are to be diagnosed."""
    if want.full is None:
        return scores
    return [
        replace(s, positions=at.astype(np.int32)) for s, at in zip(scores, want.full, strict=True)
    ]


@dataclass(frozen=True)
class _Counts:
    bytes_in: int
    bytes_out: int
    requests: int
    retries: int

    @staticmethod
    def of(http: Http) -> _Counts:
        return _Counts(http.bytes_in, http.bytes_out, http.requests, http.retries)


def _progress(found: Sequence[Scores | None]) -> str:
    return f"{sum(s is not None for s in found)} of {len(found)} scored"


def _empty(rollout: Rollout, want: Want, vocab: int) -> Scores:
    """Scores of a completion without tokens: nothing to ask."""
    k = min(want.topk, vocab)
    none = np.zeros(0, dtype=np.float32)
    return Scores(
        sampled=none if want.sampled else None,
        support=np.zeros((0, rollout.topk_ids.shape[1]), np.float32) if want.support else None,
        log_z=none if want.support else None,
        topk_ids=np.zeros((0, k), np.int32) if k else None,
        topk_logp=np.zeros((0, k), np.float32) if k else None,
    )
