"""`opd serve-teacher` without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx2
import numpy as np

from opd.teachers import wire
from opd.teachers.opd_api import (
    CHECKSUMS,
    INFO,
    PROTOCOL,
    REQUEST_ARRAYS,
    SCORE,
    TOKENIZE,
    row_checksum,
)
from opd.testing.clients import json_response, raw_response
from opd.testing.language import NextLogp, completion_logp
from opd.testing.teacher import compute_scores
from opd.types import Rollout, Want


@dataclass(eq=False)
class FakeTeacherServer(httpx2.BaseTransport):
    """A transport of `opd.http.Http` that speaks the API of `opd serve-teacher`.

    Attributes:
        logp: next-token log-probs at temperature 1.
        vocab: number of token ids.
        model: name of the model.
        eos: ids that end a completion.
        context: maximum tokens of prompt + completion.
        protocol: what it says it speaks.
        tokenize: text to token ids; None: no such route.
        applies_temperature: False: scores are those of temperature 1 whatever is asked.
        edit_answer: changes the arrays of an answer in place, to answer wrongly.
    """

    logp: NextLogp
    vocab: int
    model: str = "m"
    eos: Sequence[int] = ()
    context: int = 4096
    protocol: str = PROTOCOL
    tokenize: Callable[[str], list[int]] | None = None
    applies_temperature: bool = True
    edit_answer: Callable[[dict[str, np.ndarray]], None] | None = None

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        body = request.read()
        if request.url.path == INFO:
            return json_response(
                {
                    "protocol": self.protocol,
                    "model": self.model,
                    "fingerprint": "fake",
                    "vocab": self.vocab,
                    "context": self.context,
                    "eos": list(self.eos),
                    "max_tokens": self.context,
                }
            )
        if request.url.path == TOKENIZE and self.tokenize is not None:
            return json_response({"tokens": self.tokenize(json.loads(body)["prompt"])})
        if request.url.path == SCORE:
            return raw_response(self._score(body))
        return json_response({"detail": "Not Found"}, 404)

    def _score(self, body: bytes) -> bytes:
        header, arrays = wire.unpack(body, REQUEST_ARRAYS)
        want = Want(header["sampled"] or header["support"], header["support"], header["topk"])
        temperature = header["temperature"] if self.applies_temperature else 1.0
        completions = arrays["completions"]
        sequences = np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])
        no_support = np.zeros((int(completions.sum()), 0), np.int32)
        supports = np.split(arrays.get("support_ids", no_support), np.cumsum(completions)[:-1])
        scores = []
        for ids, count, support in zip(sequences, completions, supports, strict=True):
            rollout = Rollout.of_ids(ids[:-count], ids[-count:], topk_ids=support)
            logp = completion_logp(self.logp, rollout)
            if temperature != 1.0:
                logits = logp / temperature
                logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            scores.append(compute_scores(logp, rollout, want).arrays())
        answer = {name: np.concatenate([s[name] for s in scores]) for name in scores[0]}
        answer[CHECKSUMS] = np.array([row_checksum(s) for s in sequences], np.int32)
        if self.edit_answer is not None:
            self.edit_answer(answer)
        return wire.pack({"protocol": self.protocol}, answer)
