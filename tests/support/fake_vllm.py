"""A vLLM server in memory, a language model that fits on a page, and a clock that tests turn.

The server is a transport of the HTTP client: everything above it is the real thing.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
from collections.abc import Callable, Iterator

import httpx2
import numpy as np

from opd.http import Endpoint, Http, Limits, Timer
from opd.types import Prompt, Rollout

CORPUS = (
    "The river was cold and clear in the morning, and the children came down to the water before "
    "the school began. Their mothers filled the buckets and carried them home. If a train leaves "
    "the station at nine and travels for three hours, then it has gone a long way by noon, and the "
    "people in it want to eat. There is nothing better than bread and soup when the weather is "
    "bad. He said that he would come again in the summer and bring his brother with him. "
)
LETTERS = "abcdefghijklmnopqrstuvwxyz ,."
UNKNOWN, EOS = len(LETTERS), len(LETTERS) + 1
VOCAB = len(LETTERS) + 2

Logp = Callable[[list[int]], np.ndarray]  # ids (L,) -> log-probs (L, V) of the NEXT token


def encode(text: str) -> list[int]:
    """One token a letter."""
    return [LETTERS.find(c) if c in LETTERS else UNKNOWN for c in text.lower()]


def bigram(seed: int = 0, *, corpus: str = CORPUS, smoothing: float = 0.3) -> Logp:
    """A letter-bigram model; the seed jitters its counts, so that two seeds are two models."""
    rng = np.random.default_rng(seed)
    counts = smoothing + rng.uniform(0, 0.2, (VOCAB, VOCAB))
    ids = encode(corpus)
    for a, b in itertools.pairwise(ids):
        counts[a, b] += 1
    table = np.log(counts / counts.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)
    return lambda ids: table[np.asarray(ids)]


class FakeClock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.time = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.time += seconds


class FakeVllm(httpx2.BaseTransport):
    """Speaks /v1/models, /v1/completions, /tokenize and, if asked to, /inference/v1/generate."""

    def __init__(
        self,
        logp: Logp,
        *,
        model: str = "m",
        max_len: int = 4096,
        max_logprobs: int = 20,
        chosen_ids: bool = False,
        tokenize: Callable[[str], list[int]] | None = encode,
        clock: FakeClock | None = None,
    ) -> None:
        self.logp, self.model, self.max_len = logp, model, max_len
        self.max_logprobs, self.chosen_ids, self.tokenizer = max_logprobs, chosen_ids, tokenize
        self.clock = clock or FakeClock()
        self.fault: Callable[[FakeVllm, httpx2.Request], httpx2.Response | None] | None = None
        self.lie: Callable[[FakeVllm, list[int], list, dict], None] | None = None
        self.asked: list[str] = []
        self.last_ids: list[int] = []
        self.lock = threading.Lock()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        with self.lock:
            self.asked.append(request.url.path)
            if self.fault is not None:
                answer = self.fault(self, request)
                if answer is not None:
                    return answer
            return self.honest(request)

    def honest(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if path == "/v1/models":
            card = {"id": self.model, "root": self.model, "max_model_len": self.max_len}
            return reply({"object": "list", "data": [card]})
        body = json.loads(request.content) if request.content else {}
        if path == "/tokenize" and self.tokenizer is not None:
            return reply({"tokens": self.tokenizer(body["prompt"])})
        if path == "/v1/completions":
            return self._complete(body)
        if path == "/inference/v1/generate" and self.chosen_ids:
            return self._chosen(body)
        return reply({"detail": "Not Found"}, 404)

    def _complete(self, body: dict) -> httpx2.Response:
        k, ids = body["prompt_logprobs"], body["prompt"]
        if k > self.max_logprobs:
            said = f"Requested prompt logprobs of {k}, greater than max {self.max_logprobs}"
            return reply({"error": {"message": said}}, 400)
        rows = [None, *(self.row(p, t, k) for p, t in zip(self.logp(ids), ids[1:], strict=False))]
        choice = {"index": 0, "text": "x", "prompt_logprobs": rows, "prompt_token_ids": list(ids)}
        if self.lie is not None:
            self.lie(self, ids, rows, choice)
        self.last_ids = ids
        return reply({"model": self.model, "choices": [choice]})

    @staticmethod
    def row(logp: np.ndarray, token: int, k: int) -> dict:
        best = np.argsort(-logp, kind="stable")[:k].tolist()
        row = {str(v): {"logprob": float(logp[v]), "rank": r + 1} for r, v in enumerate(best)}
        if token not in best:
            rank = int((logp > logp[token]).sum()) + 1
            row = {str(token): {"logprob": float(logp[token]), "rank": rank}} | row
        return row

    def _chosen(self, body: dict) -> httpx2.Response:
        wanted = body["sampling_params"]["prompt_logprob_token_ids"]
        start = body["sampling_params"]["prompt_logprob_start"]
        logp = self.logp(body["token_ids"])[start:-1]
        if len(wanted) != len(logp):
            return reply({"error": {"message": "rows mismatch"}}, 400)
        values = np.take_along_axis(logp, np.array(wanted), 1).astype(np.float32)
        data = io.BytesIO()
        np.save(data, values)
        text = base64.b64encode(data.getvalue()).decode()
        return reply({"model": self.model, "choices": [], "prompt_token_id_logprobs": text})


def reply(value: object, status: int = 200, headers: dict | None = None) -> httpx2.Response:
    return raw(json.dumps(value).encode(), status, headers)


def raw(body: bytes, status: int = 200, headers: dict | None = None) -> httpx2.Response:
    """A response whose body is still to be read, as from a network."""
    return httpx2.Response(status, stream=Dripping(iter([body])), headers=headers)


class Dripping(httpx2.SyncByteStream):
    """A body that comes piece by piece, and may break off."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[bytes]:
        yield from self.parts


def client(server: httpx2.BaseTransport, clock: FakeClock, **changes) -> Http:
    limits = Limits(**({"answer": 30.0, "attempts": 4, "answer_bytes": 2**22} | changes))
    return Http(
        Endpoint("http://teacher.test:8000", "teacher", "teacher.url"),
        limits=limits,
        timer=Timer(clock.now, clock.sleep),
        transport=server,
    )


def rollouts(count: int, *, seed: int = 0, vocab: int = VOCAB, k: int = 4, longest: int = 12):
    """Random sequences with random supports."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        t = int(rng.integers(1, longest + 1))
        prompt = Prompt(i, tuple(rng.integers(0, vocab, rng.integers(1, 9)).tolist()), "")
        ids = rng.integers(0, vocab, t).astype(np.int32)
        top = np.stack([rng.permutation(vocab)[:k] for _ in range(t)]).astype(np.int32)
        zeros, wide = np.zeros(t, np.float32), np.zeros((t, k), np.float32)
        made.append(Rollout(prompt, 0, ids, zeros, zeros, top, wide, "length"))
    return made


def truth(logp: Logp, rollout: Rollout) -> np.ndarray:
    """Log-probs (T,) of a rollout's tokens by the model itself."""
    ids = [*rollout.prompt.ids, *rollout.ids.tolist()]
    rows = logp(ids)[len(rollout.prompt.ids) - 1 : -1]
    return np.take_along_axis(rows, rollout.ids[:, None].astype(int), 1)[:, 0]
