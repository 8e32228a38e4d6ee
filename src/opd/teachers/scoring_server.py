"""`opd serve-teacher`: any transformers model as a scoring server, exact on student-chosen ids.

Token ids in, arrays out (`wire`); the client is `opd_api`. One worker thread owns the model;
requests that arrive together are scored together. The size of a body and the number of queued
tokens are bounded. Shapes: B sequences of a request, K student-chosen ids.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from opd.errors import MissingDependency
from opd.http import clean
from opd.models.lm import LM
from opd.teachers import wire
from opd.teachers.local import LocalTeacher
from opd.teachers.opd_api import (
    CHECKSUMS,
    CONTENT_TYPE,
    INFO,
    PROTOCOL,
    REQUEST_ARRAYS,
    SCORE,
    TOKENIZE,
    row_checksum,
)
from opd.types import Rollout, Scores, Want

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError:
    raise MissingDependency("starlette", needed_for="opd serve-teacher", extra="serve") from None

logger = logging.getLogger(__name__)

MAX_BODY = 64 * 2**20
MAX_TEXT = 2**20  # bytes of a body with text to tokenize
MAX_TOPK = 1024
BATCH_WINDOW = 0.003  # seconds a request waits for others to share its forward
Handler = Callable[[Request], Awaitable[Response]]


class BadRequest(ValueError):
    """A mistake of the client; the message is sent to it."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, eq=False)
class Job:
    """One request: sequences to score, and how."""

    rollouts: list[Rollout]
    want: Want
    temperature: float
    result: asyncio.Future[list[Scores]]

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(r.prompt.ids) + len(r) for r in self.rollouts)

    @property
    def kind(self) -> tuple[Want, float]:
        """Jobs of one kind can share forwards."""
        return self.want, self.temperature


class Scorer:
    """The model and its queue."""

    def __init__(self, lm: LM, *, tokens_per_batch: int = 8192, queue_tokens: int = 262144) -> None:
        """Make an empty queue; `run` scores what is put into it.

        Args:
            lm: the teacher.
            tokens_per_batch: padded tokens per forward.
            queue_tokens: limit of queued tokens; beyond it clients are asked to retry later.
        """
        self.lm, self.tokens_per_batch, self.queue_tokens = lm, tokens_per_batch, queue_tokens
        self.queued = 0
        self._queue: asyncio.Queue[Job] = asyncio.Queue()

    def enqueue(self, job: Job) -> bool:
        """Queue a job; False if the queue is full. An empty queue takes a job of any size."""
        if self.queued and self.queued + job.tokens > self.queue_tokens:
            return False
        self.queued += job.tokens
        self._queue.put_nowait(job)
        return True

    async def run(self) -> None:
        """Score jobs until cancelled: collect for a moment, then one thread call per kind."""
        while True:
            jobs = [await self._queue.get()]
            await asyncio.sleep(BATCH_WINDOW)
            while not self._queue.empty() and sum(j.tokens for j in jobs) < self.tokens_per_batch:
                jobs.append(self._queue.get_nowait())
            for kind in dict.fromkeys(job.kind for job in jobs):
                await self._score([job for job in jobs if job.kind == kind])
            self.queued -= sum(job.tokens for job in jobs)

    async def _score(self, jobs: Sequence[Job]) -> None:
        rollouts = [r for job in jobs for r in job.rollouts]
        teacher = LocalTeacher(
            self.lm, tokens_per_batch=self.tokens_per_batch, temperature=jobs[0].temperature
        )
        try:
            scores = await asyncio.to_thread(teacher.score, rollouts, jobs[0].want)
        except (RuntimeError, ValueError) as error:  # out of memory, above all
            logger.error("Scoring failed: %s", error)
            for job in jobs:
                if not job.result.cancelled():
                    job.result.set_exception(RuntimeError(f"scoring failed: {error}"))
            return
        start = 0
        for job in jobs:
            if not job.result.cancelled():
                job.result.set_result(scores[start : start + len(job.rollouts)])
            start += len(job.rollouts)


def make_app(
    lm: LM, tokenizer: Any, *, token: str | None, eos: Sequence[int] = (), scorer: Scorer
) -> Starlette:
    """The HTTP application.

    Args:
        lm: the teacher.
        tokenizer: its tokenizer, for the clients' check of theirs.
        token: what every request but /health must carry as bearer token; None for none.
        eos: ids that end the teacher's completions.
        scorer: the queue; its `run` is started with the application.
    """
    info = {
        "protocol": PROTOCOL,
        "model": lm.name,
        "vocab": lm.vocab,
        "context": lm.context_length,
        "eos": sorted(eos),
        "max_tokens": scorer.tokens_per_batch,
        "fingerprint": fingerprint(lm),
    }
    handlers = _Handlers(lm, tokenizer, scorer, info)
    app = Starlette(
        routes=[
            Route("/health", handlers.health),
            Route(INFO, _authenticate(handlers.info, token)),
            Route(TOKENIZE, _authenticate(handlers.tokenize, token), methods=["POST"]),
            Route(SCORE, _authenticate(handlers.score, token), methods=["POST"]),
        ]
    )
    app.state.scorer = scorer
    return app


class _Handlers:
    """The routes, without authentication."""

    def __init__(self, lm: LM, tokenizer: Any, scorer: Scorer, info: dict[str, Any]) -> None:
        self._lm, self._tokenizer, self._scorer, self._info = lm, tokenizer, scorer, info

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def info(self, request: Request) -> Response:
        return JSONResponse(self._info)

    async def tokenize(self, request: Request) -> Response:
        body = await _read_body(request, MAX_TEXT)
        try:
            text = str(json.loads(body)["prompt"])
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadRequest("send JSON with a prompt") from None
        return JSONResponse({"tokens": ids, "count": len(ids)})

    async def score(self, request: Request) -> Response:
        body = await _read_body(request, MAX_BODY)
        rollouts, want, temperature = read_request(body, self._lm)
        result: asyncio.Future[list[Scores]] = asyncio.get_running_loop().create_future()
        if not self._scorer.enqueue(Job(rollouts, want, temperature, result)):
            return _error(429, "the queue is full", {"retry-after": "1"})
        try:
            scores = await result
        except RuntimeError as error:
            return _error(503, str(error))
        return Response(write_answer(rollouts, scores), media_type=CONTENT_TYPE)


def _authenticate(handler: Handler, token: str | None) -> Handler:
    """`handler` for requests that carry the token; a BadRequest becomes an answer."""

    async def checked(request: Request) -> Response:
        header = request.headers.get("authorization", "")
        if token and not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
            return _error(401, "this server wants the token it printed when it started")
        try:
            return await handler(request)
        except BadRequest as error:
            return _error(error.status, str(error))

    return checked


def read_request(body: bytes, lm: LM) -> tuple[list[Rollout], Want, float]:
    """Rollouts, what is asked of them, and the temperature.

    Raises:
        BadRequest: anything that cannot be scored.
    """
    try:
        header, arrays = wire.unpack(body, REQUEST_ARRAYS)
    except wire.WireError as error:
        raise BadRequest(f"the request is {error}") from None
    if header.get("protocol") != PROTOCOL:
        raise BadRequest(
            f"this server speaks {PROTOCOL}, not {clean(str(header.get('protocol')))[:40]}; "
            "install one version of opd on both machines"
        )
    topk, temperature = header.get("topk", 0), header.get("temperature", 1.0)
    if type(topk) is not int or not 0 <= topk <= min(MAX_TOPK, lm.vocab):
        raise BadRequest(f"topk must be between 0 and {min(MAX_TOPK, lm.vocab)}")
    if not isinstance(temperature, int | float) or not 1e-3 <= temperature <= 1e3:
        raise BadRequest("temperature must be between 0.001 and 1000")
    support = header.get("support") is True
    want = Want(sampled=header.get("sampled") is True or support, support=support, topk=topk)
    return _sequences(arrays, support, lm), want, float(temperature)


def _sequences(arrays: dict[str, np.ndarray], support: bool, lm: LM) -> list[Rollout]:
    """The sequences of a request; support_ids (sum of completions, K) only with `support`."""
    names = [n for n in REQUEST_ARRAYS if support or n != "support_ids"]
    if set(arrays) != set(names) or any(arrays[n].dtype != np.int32 for n in names):
        raise BadRequest(f"send int32 arrays {', '.join(names)}")
    lengths, completions, ids = arrays["lengths"], arrays["completions"], arrays["ids"]
    if lengths.ndim != 1 or lengths.shape != completions.shape or ids.ndim != 1:
        raise BadRequest("lengths and completions must be lists of one size, ids a flat list")
    if len(lengths) == 0 or int(lengths.sum(dtype=np.int64)) != len(ids):
        raise BadRequest("lengths must sum to the number of ids")
    if (completions < 1).any() or (completions >= lengths).any():
        raise BadRequest("every sequence needs a prompt and a completion of at least one token")
    longest, context = int(lengths.max()), lm.context_length
    if context is not None and longest > context:
        raise BadRequest(f"{longest} tokens; the context of this teacher is {context} tokens")
    _require_vocab(ids, lm)
    count = int(completions.sum(dtype=np.int64))
    support_ids = arrays.get("support_ids", np.zeros((count, 0), dtype=np.int32))
    if support_ids.ndim != 2 or len(support_ids) != count or support_ids.shape[1] > MAX_TOPK:
        raise BadRequest(f"support_ids must have one row for each of {count} completion tokens")
    _require_vocab(support_ids, lm)
    starts, rows = np.cumsum(lengths)[:-1], np.cumsum(completions)[:-1]
    return [
        Rollout.of_ids(sequence[:-count], sequence[-count:], topk_ids=topk_ids)
        for sequence, count, topk_ids in zip(
            np.split(ids, starts), completions, np.split(support_ids, rows), strict=True
        )
    ]


def _require_vocab(ids: np.ndarray, lm: LM) -> None:
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= lm.vocab):
        raise BadRequest(f"token ids must lie between 0 and {lm.vocab - 1}")


def write_answer(rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> bytes:
    """All scores of a request as one message, with the checksum of every sequence."""
    rows = [s.arrays() for s in scores]
    arrays = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    checksums = [row_checksum(np.array([*r.prompt.ids, *r.ids.tolist()])) for r in rollouts]
    return wire.pack({"protocol": PROTOCOL}, {CHECKSUMS: np.array(checksums, np.int32)} | arrays)


def fingerprint(lm: LM) -> str:
    """Hash of the weights: every tensor's name, shape and about 4096 evenly spaced values."""
    digest = hashlib.sha256()
    for name, tensor in lm.model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // 4096)].to(torch.float64).cpu().numpy()
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()[:16]


async def _read_body(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise BadRequest(f"the body is larger than {limit} bytes", 413)
        parts.append(part)
    return b"".join(parts)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status, headers)


class TeacherServer:
    """An application on a port: in the foreground of `opd serve-teacher`, or in a thread."""

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        """Configure; the port is bound by `serve`."""
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", access_log=False, server_header=False
        )
        self._server, self._scorer = uvicorn.Server(config), app.state.scorer

    def serve(self) -> None:
        """Serve until interrupted or stopped."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        worker = asyncio.create_task(self._scorer.run())
        try:
            await self._server.serve()
        finally:
            worker.cancel()

    def stop(self) -> None:
        """Ask a running server to end, from any thread."""
        self._server.should_exit = True

    @property
    def port(self) -> int | None:
        """The port once it is bound (for port 0), else None."""
        if not self._server.started:
            return None
        return int(self._server.servers[0].sockets[0].getsockname()[1])
