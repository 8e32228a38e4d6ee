"""The API of `opd serve-teacher`, client side: token ids in, arrays out.

Paths below the server's root: GET /v1/opd/info, POST /v1/opd/score (a `wire` message both ways),
POST /tokenize.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from opd.core.microbatches import token_batches
from opd.errors import UserError
from opd.http import Http, Refusal, Transient, clean
from opd.teachers import wire
from opd.teachers.validate import WrongAnswer
from opd.types import SCORE_FIELDS, Kind, Rollout, Scores, Want

PROTOCOL_NAME = "opd-teacher/"
PROTOCOL = PROTOCOL_NAME + "2"  # 2: messages are safetensors
CONTENT_TYPE = "application/x-safetensors"
INFO, SCORE, TOKENIZE = "/v1/opd/info", "/v1/opd/score", "/tokenize"
REQUEST_ARRAYS = ("lengths", "completions", "ids", "support_ids")
CHECKSUMS = "rows"  # array of an answer: `row_checksum` of every sequence
ANSWER_ARRAYS = (CHECKSUMS, *SCORE_FIELDS)


class OpdDialect:
    """`opd.teachers.dialect.Dialect` of `opd serve-teacher`."""

    kinds = frozenset({Kind.SAMPLED, Kind.SUPPORT, Kind.TOPK})

    def __init__(self, http: Http, *, temperature: float = 1.0) -> None:
        """Read the server's model, vocabulary size and limits.

        Args:
            http: client of the server's root.
            temperature: divides the teacher's logits (loss.teacher_temperature).

        Raises:
            Transient: no answer.
            UserError: no such server, or another version of it.
        """
        self.http, self.temperature = http, temperature
        info = self._info(once=False)
        self.name = str(info.get("model", ""))
        self.context = _integer(info, "context")
        self.vocab = _integer(info, "vocab") or 0
        self.max_tokens = max(1, _integer(info, "max_tokens") or 1)
        eos = info.get("eos")
        self.eos = frozenset(eos) if isinstance(eos, list) and _all_ints(eos) else frozenset()

    def identity(self, *, once: bool = False) -> str:
        """See `Dialect.identity`."""
        info = self._info(once=once)
        return f"{info.get('model')} {info.get('fingerprint')}"

    def tokenize(self, text: str) -> list[int] | None:
        """See `Dialect.tokenize`."""
        answer = self.http.post_json(TOKENIZE, {"prompt": text, "add_special_tokens": False})
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        return tokens if isinstance(tokens, list) and _all_ints(tokens) else None

    def batches(self, rollouts: Sequence[Rollout]) -> list[list[int]]:
        """See `Dialect.batches`; sequences of similar length share a request."""
        lengths = [len(r.prompt.ids) + len(r) for r in rollouts]
        return token_batches(lengths, self.max_tokens)

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `Dialect.score`. `support` comes with `log_z`, so it is exact log-probs."""
        header = {
            "protocol": PROTOCOL,
            "sampled": want.sampled,
            "support": want.support,
            "topk": want.topk,
            "temperature": self.temperature,
        }
        sequences = [np.array([*r.prompt.ids, *r.ids.tolist()], dtype=np.int32) for r in rollouts]
        arrays = {
            "lengths": np.array([len(s) for s in sequences], dtype=np.int32),
            "completions": np.array([len(r) for r in rollouts], dtype=np.int32),
            "ids": np.concatenate(sequences),
        }
        if want.support:
            arrays["support_ids"] = np.concatenate([r.topk_ids for r in rollouts]).astype(np.int32)
        answer = self.http.post(SCORE, wire.pack(header, arrays), CONTENT_TYPE, _read)
        return _split(answer, rollouts, sequences)

    def _info(self, *, once: bool) -> dict[str, Any]:
        info = self.http.get_json(INFO, once=once)
        protocol = _protocol(info)
        if protocol == PROTOCOL:
            return dict(info)
        if protocol.startswith(PROTOCOL_NAME):
            raise UserError(
                f"{self.http.key}={self.http.url}: `opd serve-teacher` of another version of opd: "
                f"the server speaks {clean(protocol)}, this side {PROTOCOL}. Install one version "
                "of opd on both machines."
            )
        raise UserError(
            f"{self.http.key}={self.http.url}: this server does not speak {PROTOCOL}. Start "
            "`opd serve-teacher` there."
        )


def is_opd(http: Http) -> bool:
    """Whether the server is `opd serve-teacher`; raises Transient when nobody answers."""
    try:
        info = http.get_json(INFO)
    except Refusal as error:
        if error.status in (404, 405):
            return False
        raise
    return _protocol(info).startswith(PROTOCOL_NAME)


def _protocol(info: Any) -> str:
    return str(info.get("protocol", "")) if isinstance(info, dict) else ""


def _read(body: bytes) -> dict[str, np.ndarray]:
    try:
        _, arrays = wire.unpack(body, ANSWER_ARRAYS)
    except wire.WireError as error:
        raise Transient(f"the answer is {error}") from None
    return arrays


def row_checksum(ids: np.ndarray) -> int:
    """Checksum of a sequence's ids: shows that a row of an answer is of this sequence."""
    return zlib.crc32(np.ascontiguousarray(ids, dtype="<i4").tobytes()) & 0x7FFFFFFF


def _split(
    answer: dict[str, np.ndarray], rollouts: Sequence[Rollout], sequences: Sequence[np.ndarray]
) -> list[Scores]:
    """One Scores per rollout from the concatenated arrays of an answer."""
    expected = np.array([row_checksum(s) for s in sequences], dtype=np.int32)
    checksums = answer.pop(CHECKSUMS, None)
    if checksums is None or not np.array_equal(checksums, expected):
        raise WrongAnswer("the rows of the answer are of other sequences than were sent")
    ends = np.cumsum([len(r) for r in rollouts])
    for name, array in answer.items():
        if array.ndim == 0 or len(array) != ends[-1]:
            raise WrongAnswer(f"{name} has {array.shape[:1]} rows for {ends[-1]} tokens")
    parts = {name: np.split(array, ends[:-1]) for name, array in answer.items()}
    rows: list[dict[str, Any]] = [
        {name: part[i].copy() for name, part in parts.items()} for i in range(len(rollouts))
    ]
    return [Scores(**row) for row in rows]


def _integer(info: dict[str, Any], name: str) -> int | None:
    value = info.get(name)
    return value if type(value) is int else None


def _all_ints(values: list[Any]) -> bool:
    return all(type(v) is int for v in values)
