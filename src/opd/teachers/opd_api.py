"""The API of `opd serve-teacher`, client side: token ids in, arrays out.

Paths below the server's root: GET /v1/opd/info, POST /v1/opd/score (a `wire` frame both ways),
POST /tokenize.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from opd.core.microbatches import token_batches
from opd.errors import UserError
from opd.http import Answer, Http, Refusal, Transient
from opd.teachers import wire
from opd.teachers.validate import WrongAnswer
from opd.types import SCORE_FIELDS, Kind, Rollout, Scores, Want

PROTOCOL = "opd-teacher/1"
FRAME = "application/x-opd-frame"
INFO, SCORE, TOKENIZE = "/v1/opd/info", "/v1/opd/score", "/tokenize"


class OpdDialect:
    """`opd.teachers.remote.Dialect` of `opd serve-teacher`."""

    kinds = frozenset({Kind.SAMPLED, Kind.SUPPORT, Kind.TOPK})
    max_topk: int | None = None

    def __init__(self, http: Http, *, temperature: float = 1.0) -> None:
        """Ask the server what it is.

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
        """See `Dialect.batches`; sequences of like length share a request."""
        lengths = [len(r.prompt.ids) + len(r) for r in rollouts]
        return token_batches(lengths, self.max_tokens)

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `Dialect.score`. `support` comes with `log_z`, so it is exact log-probs."""
        meta = {
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
        body = wire.pack(meta, arrays)
        answer, given = self.http.post(SCORE, body, FRAME, _read)
        return _split(answer, given, rollouts, sequences)

    def _info(self, *, once: bool) -> dict[str, Any]:
        info = self.http.get_json(INFO, once=once)
        if not isinstance(info, dict) or info.get("protocol") != PROTOCOL:
            raise UserError(
                f"{self.http.key}={self.http.url}: this server does not speak {PROTOCOL}. Start "
                "`opd serve-teacher` of the same opd version, or set teacher.api=vllm."
            )
        return info


def is_opd(http: Http) -> bool:
    """Whether the server is `opd serve-teacher`; raises Transient when nobody answers."""
    try:
        info = http.get_json(INFO)
    except Refusal as error:
        if error.status in (404, 405):
            return False
        raise
    return isinstance(info, dict) and str(info.get("protocol", "")).startswith("opd-teacher/")


def _read(answer: Answer) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        return wire.unpack(answer.body)
    except wire.WireError as error:
        raise Transient(str(error)) from None


def row_mark(ids: np.ndarray) -> int:
    """A number that ties a row of an answer to the ids it is about."""
    return zlib.crc32(np.ascontiguousarray(ids, dtype="<i4").tobytes()) & 0x7FFFFFFF


def _split(
    meta: dict[str, Any],
    given: dict[str, np.ndarray],
    rollouts: Sequence[Rollout],
    sequences: Sequence[np.ndarray],
) -> list[Scores]:
    """One Scores a rollout from the joined arrays of an answer."""
    marks = given.get("rows")
    expected = np.array([row_mark(s) for s in sequences], dtype=np.int32)
    if marks is None or not np.array_equal(marks, expected):
        raise WrongAnswer("the rows of the answer are of other sequences than were asked about")
    ends = np.cumsum([len(r) for r in rollouts])
    for name in SCORE_FIELDS:
        if name in given and (given[name].ndim == 0 or len(given[name]) != ends[-1]):
            raise WrongAnswer(f"{name} has {given[name].shape[:1]} rows for {ends[-1]} tokens")
    parts = {n: np.split(given[n], ends[:-1]) for n in SCORE_FIELDS if n in given}
    rows: list[dict[str, Any]] = [
        {n: p[i].copy() for n, p in parts.items()} for i in range(len(rollouts))
    ]
    return [Scores(**row) for row in rows]


def _integer(info: dict[str, Any], name: str) -> int | None:
    value = info.get(name)
    return value if type(value) is int else None


def _all_ints(values: list[Any]) -> bool:
    return all(type(v) is int for v in values)
