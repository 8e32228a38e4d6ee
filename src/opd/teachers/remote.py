"""A teacher behind HTTP: concurrent requests, checked answers, and a pause while it is away.

What is particular to a server's API is a `Dialect` (`opd_api`, `vllm_api`). Whether the server is
a usable teacher is tested before training (`probes`); whether it is still the same teacher is
checked after every batch of answers.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import numpy as np

from opd.errors import UserError
from opd.http import Http, Transient, clean
from opd.run.bad_answers import Exchange, Quarantine
from opd.teachers.dialect import Dialect, TeacherRecord, request_scores
from opd.teachers.early import EarlyScores
from opd.teachers.repeats import RepeatChecks
from opd.teachers.validate import WrongAnswer
from opd.types import Rollout, Scores, Want

logger = logging.getLogger(__name__)

PROGRESS_EVERY = 10.0  # seconds between two messages about progress
MAX_FRUITLESS_ROUNDS = 3  # in a row: the teacher answers probes and scores nothing new


class TeacherDown(UserError):
    """The teacher stayed away longer than `patience`; `partial` holds what it had scored."""

    def __init__(self, message: str, partial: list[Scores | None]) -> None:
        super().__init__(message)
        self.partial = partial


# Requests under way at once: enough to keep a teacher busy while answers travel. The prompt
# log-probs of many more would fill the memory of a vLLM server.
CONCURRENCY = 8


@dataclass(frozen=True)
class RemoteOptions:
    """How a server is used.

    Attributes:
        topk_for_diagnostics: the teacher's own top tokens that replace the hidden states of
            `Want.full`, which a server cannot return.
        concurrency: maximum requests under way.
        patience: seconds to wait for a teacher that does not answer.
        notify: takes messages about waiting.
        record: takes named numbers for the step's timings.
    """

    topk_for_diagnostics: int = 0
    concurrency: int = CONCURRENCY
    patience: float = 600.0
    notify: Callable[[str], None] = logger.info
    record: Callable[[str, float], None] = lambda name, value: None


class RemoteTeacher:
    """`opd.types.Teacher` for a model behind HTTP."""

    def __init__(
        self,
        dialect: Dialect,
        name: str,
        *,
        vocab: int,
        expected: TeacherRecord,
        options: RemoteOptions = RemoteOptions(),
        quarantine: Quarantine | None = None,
    ) -> None:
        """Make a teacher; `opd.teachers.handshake` tests one first.

        Args:
            dialect: client of the server.
            name: the model's name.
            vocab: number of token ids in use.
            expected: the teacher of the handshake; another one is refused.
            options: concurrency, patience and callbacks.
            quarantine: where wrong answers are kept.
        """
        self.dialect, self.name, self.kinds = dialect, name, dialect.kinds
        self.vocab, self.expected, self.options = vocab, expected, options
        self.quarantine = quarantine
        self.checks = RepeatChecks(expected.noise)
        self._timer = dialect.http.timer
        self._before: _Traffic | None = None
        self._early = EarlyScores(dialect, self._request, self.options.concurrency)

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `opd.types.Teacher.score`; `want.full` becomes the teacher's own top tokens.

        Raises:
            TeacherDown: no answers for longer than `patience`.
            UserError: a refusal, an answer that stays wrong, or another teacher than before.
        """
        request = replace_full(want, self.options.topk_for_diagnostics)
        before, self._before = self._before or _Traffic.of(self.dialect.http), None
        scores: list[Scores | None] = [
            _empty_scores(r, request, self.vocab) if not len(r) else None for r in rollouts
        ]
        self._early.take(rollouts, request, scores)
        fruitless, missing = 0, len(scores)
        while (
            failure := self._score_missing(rollouts, request, scores)
            or self._verify(rollouts, request, scores)
        ) is not None:
            still_missing = sum(s is None for s in scores)
            fruitless = fruitless + 1 if still_missing == missing else 0
            missing = still_missing
            if fruitless >= MAX_FRUITLESS_ROUNDS:
                raise self._down(f"it answers probes, but not this: {failure}", scores)
            self._wait_for_teacher(failure, scores)
        self._record_traffic(before, rollouts)
        complete = [s for s in scores if s is not None]
        self.checks.remember(rollouts, complete)
        return set_positions(complete, want)

    def prefetch(self, rollouts: Sequence[Rollout], want: Want) -> None:
        """Begin to ask for scores that a later `score` of the same rollouts will use.

        A failure, or another request than `want`, is left to `score`, which asks as always. What is
        never asked for again is dropped by the next `score`.

        Args:
            rollouts: that will be scored.
            want: what will be asked; `full` may be anything but None where diagnostics want it.
        """
        self._before = self._before or _Traffic.of(self.dialect.http)
        self._early.begin(rollouts, replace_full(want, self.options.topk_for_diagnostics))

    def verify(self) -> None:
        """Make sure that the server is still the expected teacher.

        Raises:
            UserError: it is another one, or scores a known sequence differently.
            Transient: it does not answer.
        """
        self._verify_identity(self.dialect.identity())
        canary = self.expected.canary
        if canary is None:
            return
        try:
            (scores,) = self._request([canary.rollout], Want(sampled=True))
        except WrongAnswer as error:
            raise UserError(
                f"The teacher at {self.dialect.http.url} answers a known question wrongly: {error}."
                " The scores of this step are not used."
            ) from None
        distance = canary.distance(scores)
        if distance > canary.tolerance:
            raise UserError(
                f"The teacher at {self.dialect.http.url} has changed: it scores the text of the "
                f"handshake {distance:.3g} nats per token differently ({canary.tolerance:.2g} is "
                "its noise). Another model, other weights or a broken cache answers under the same "
                "name. The scores of this step are not used. Start the first teacher again and "
                "continue with --resume, or begin a new run (output.dir)."
            )

    def _score_missing(
        self, rollouts: Sequence[Rollout], want: Want, scores: list[Scores | None]
    ) -> Transient | None:
        """Request every entry of `scores` that is None; the failure that stopped it, or None."""
        missing = [i for i, s in enumerate(scores) if s is None]
        batches = [
            [missing[j] for j in batch]
            for batch in self.dialect.batches([rollouts[i] for i in missing])
        ]
        stop, failure = threading.Event(), None
        pool = ThreadPoolExecutor(self.options.concurrency, thread_name_prefix="teacher")
        try:
            pending: dict[Future[list[Scores] | None], list[int]] = {
                pool.submit(self._request_twice, [rollouts[i] for i in batch], want, stop): batch
                for batch in batches
            }
            notified = self._timer.now()
            while pending:
                done, _ = wait(pending, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    batch = pending.pop(future)
                    try:
                        answer = future.result()
                    except Transient as error:
                        stop.set()  # the other requests would fail in the same way
                        failure = error
                        continue
                    if answer is not None:
                        for i, new in zip(batch, answer, strict=True):
                            scores[i] = new
                if pending and self._timer.now() - notified > PROGRESS_EVERY:
                    notified = self._timer.now()
                    self.options.notify(f"waiting for teacher, {_progress(scores)}")
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return failure

    def _request_twice(
        self, rollouts: Sequence[Rollout], want: Want, stop: threading.Event
    ) -> list[Scores] | None:
        """One request; a wrong answer is asked for once more. None if `stop` is set."""
        for last in (False, True):
            if stop.is_set():
                return None
            try:
                return self._request(rollouts, want)
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

    def _request(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """One request with its answer checked; a wrong answer is kept in the quarantine.

        Raises:
            WrongAnswer: the rule that is broken, and where the answer is kept.
        """
        with self.dialect.http.capture() as exchanges:
            try:
                return request_scores(self.dialect, rollouts, want, self.vocab)
            except WrongAnswer as error:
                if self.quarantine is None:
                    raise
                kept = self.quarantine.keep([Exchange(*e) for e in exchanges], str(error))
                raise WrongAnswer(f"{error}.{kept}".removesuffix(".")) from None

    def _verify(
        self, rollouts: Sequence[Rollout], want: Want, scores: Sequence[Scores | None]
    ) -> Transient | None:
        """Make sure that complete scores are of the expected teacher, and agree with themselves.

        Both are asked at the same time; another teacher is named before a contradiction.

        Raises:
            UserError: see `verify`; or it scores a rollout differently than the first time.
        """
        repeats = self.checks.choose(rollouts, [s or Scores() for s in scores])
        answers: list[Scores | None] = [None] * len(repeats)
        again = [repeat.rollout for repeat in repeats]
        failure: Transient | UserError | None
        with ThreadPoolExecutor(1, thread_name_prefix="verify") as pool:
            expected = pool.submit(self.verify)
            try:
                failure = self._score_missing(again, want, answers)
            except UserError as error:
                failure = error
            try:
                expected.result()
            except Transient as error:
                return error
        if isinstance(failure, UserError):
            raise failure
        if failure is not None:
            return failure
        contradiction = self.checks.judge(repeats, [a or Scores() for a in answers])
        if contradiction is not None:
            raise UserError(
                f"The teacher {self.name} at {self.dialect.http.url} contradicts itself: "
                f"{contradiction}. Answers of different rows mixed up, replicas that differ, a "
                "stale cache, or other weights than before. The scores of this step are not used. "
                "Serve one replica, then continue with --resume."
            )
        scored = sum(len(r.prompt.ids) + len(r) for r in rollouts)
        checked = sum(len(r.prompt.ids) + len(r) for r in again)
        self.options.record("teacher/checked", checked / max(1, scored))
        return None

    def _verify_identity(self, identity: str) -> None:
        if identity != self.expected.identity:
            raise UserError(
                f"Another teacher answers at {self.dialect.http.url}: it was "
                f"{self.expected.identity!r} and is {clean(identity)!r}. The scores of this step "
                "are not used. Start the first one again and continue with --resume, or begin a "
                "new run (output.dir)."
            )

    def _wait_for_teacher(self, failure: Transient, scores: list[Scores | None]) -> None:
        """Wait until the teacher answers again; give up after `patience`."""
        notify, patience = self.options.notify, self.options.patience
        began, delay = self._timer.now(), 2.0
        notify(
            f"The teacher does not answer ({failure}). Waiting for teacher, {_progress(scores)}; "
            f"giving up after {patience:g} s."
        )
        notified = began
        while self._timer.now() - began < patience:
            self._timer.sleep(min(delay, patience))
            delay = min(delay * 1.5, 30.0)
            try:
                identity = self.dialect.identity(once=True)
            except Transient as error:
                if self._timer.now() - notified > 6 * PROGRESS_EVERY:
                    notified = self._timer.now()
                    notify(f"still waiting for teacher, {_progress(scores)} ({error})")
                continue
            self._verify_identity(identity)
            notify(f"The teacher answers again after {self._timer.now() - began:.0f} s.")
            return
        raise self._down(f"for {patience:g} s: {failure}", scores)

    def _down(self, reason: str, scores: list[Scores | None]) -> TeacherDown:
        return TeacherDown(
            f"The teacher {self.name} at {self.dialect.http.url} does not answer ({reason}). "
            f"{_progress(scores)}, and kept. Start it again, then `opd train ... --resume` "
            "continues where this run stopped; teacher.patience sets how long to wait.",
            scores,
        )

    def _record_traffic(self, before: _Traffic, rollouts: Sequence[Rollout]) -> None:
        after, record = _Traffic.of(self.dialect.http), self.options.record
        tokens = max(1, sum(len(r) for r in rollouts))
        record("teacher/bytes_received_per_token", (after.bytes_in - before.bytes_in) / tokens)
        record("teacher/bytes_sent_per_token", (after.bytes_out - before.bytes_out) / tokens)
        record("teacher/requests", after.requests - before.requests)
        record("teacher/retries", after.retries - before.retries)


def replace_full(want: Want, topk: int) -> Want:
    """`want` without hidden states and view, which no server returns; the top `topk` instead."""
    if want.full is None:
        return want._replace(view=None)
    topk = max(want.topk, topk)
    return want._replace(full=None, view=None, topk=topk, sampled=want.sampled or topk > 0)


def set_positions(scores: list[Scores], want: Want) -> list[Scores]:
    """Scores with the positions of `want.full`, at which diagnostics are computed."""
    if want.full is None:
        return scores
    return [
        replace(s, positions=positions.astype(np.int32))
        for s, positions in zip(scores, want.full, strict=True)
    ]


@dataclass(frozen=True)
class _Traffic:
    bytes_in: int
    bytes_out: int
    requests: int
    retries: int

    @staticmethod
    def of(http: Http) -> _Traffic:
        return _Traffic(http.bytes_in, http.bytes_out, http.requests, http.retries)


def _progress(scores: Sequence[Scores | None]) -> str:
    return f"{sum(s is not None for s in scores)} of {len(scores)} scored"


def _empty_scores(rollout: Rollout, want: Want, vocab: int) -> Scores:
    """Scores of a completion without tokens, made without a request."""
    k = min(want.topk, vocab)
    empty = np.zeros(0, dtype=np.float32)
    return Scores(
        sampled=empty if want.sampled else None,
        support=np.zeros((0, rollout.topk_ids.shape[1]), np.float32) if want.support else None,
        log_z=empty if want.support else None,
        topk_ids=np.zeros((0, k), np.int32) if k else None,
        topk_logp=np.zeros((0, k), np.float32) if k else None,
    )
