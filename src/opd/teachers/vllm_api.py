"""vLLM's stock API as a teacher: `prompt_logprobs` over /v1/completions, token ids in.

Student-chosen ids per position go through /inference/v1/generate where the server offers
`prompt_logprob_token_ids`. Prompt log-probs are raw: a temperature does not touch them.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from opd.core.batch import predicting_positions
from opd.errors import UserError
from opd.http import Http, Refusal, clean
from opd.http.vllm import (
    COMPLETIONS,
    MAX_ID,
    MIN_LOGPROB,
    MODELS,
    model_cards,
    only_choice,
    served_length,
)
from opd.teachers.validate import ABOVE_ZERO, WrongAnswer
from opd.types import Kind, Rollout, Scores, Want

LARGEST = float(np.finfo(np.float32).max)
TOKENIZE, GENERATE = "/tokenize", "/inference/v1/generate"


Row = dict[int, tuple[float, int]]  # token id -> (log-prob, rank)


class VllmDialect:
    """`opd.teachers.dialect.Dialect` of a stock vLLM server."""

    def __init__(self, http: Http, model: str, *, probe_support: bool = True) -> None:
        """Find the model, and whether student-chosen ids can be scored.

        Args:
            http: client of the server's root.
            model: the name under which the server serves the teacher.
            probe_support: False: do not try the route for student-chosen ids.

        Raises:
            Transient: no answer.
            UserError: the server does not serve `model`.
        """
        self.http, self.model = http, model
        length = served_length(self._card(once=False))
        # One token is always generated after the scored ones.
        self.context = None if length is None else length - 1
        kinds = {Kind.SAMPLED, Kind.TOPK}
        if probe_support and self._scores_support():
            kinds.add(Kind.SUPPORT)
        self.kinds = frozenset(kinds)

    def identity(self, *, once: bool = False) -> str:
        """See `Dialect.identity`; `created` is the time of the request, so it is left out."""
        card = self._card(once=once)
        return f"{card['id']} root={card.get('root')} length={card.get('max_model_len')}"

    def tokenize(self, text: str) -> list[int] | None:
        """See `Dialect.tokenize`."""
        return tokenize(self.http, self.model, text)

    def batches(self, rollouts: Sequence[Rollout]) -> list[list[int]]:
        """See `Dialect.batches`; one sequence per request, so that a retry repeats little."""
        return [[i] for i in range(len(rollouts))]

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `Dialect.score`."""
        return [self._score_one(rollout, want) for rollout in rollouts]

    def _score_one(self, rollout: Rollout, want: Want) -> Scores:
        arrays: dict[str, Any] = {}
        if want.sampled or want.topk or not want.support:
            arrays |= self._score_sampled(rollout, want)
        if want.support:
            arrays["support"] = self._score_support(rollout)
            arrays["log_z"] = np.zeros(len(rollout), dtype=np.float32)
        return Scores(**arrays)

    def _score_sampled(self, rollout: Rollout, want: Want) -> dict[str, np.ndarray]:
        """Log-probs of the sampled tokens, and the teacher's own top k."""
        ids = [*rollout.prompt.ids, *rollout.ids.tolist()]
        body = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": max(1, want.topk),
            "return_token_ids": True,
        }
        choice = only_choice(self.http.post_json(COMPLETIONS, body))
        if choice is None:
            raise WrongAnswer("the answer does not hold exactly one choice")
        echo = choice.get("prompt_token_ids")
        if echo is not None and echo != ids:
            raise WrongAnswer("the scored ids are not the ids that were sent")
        rows = _parse_rows(choice.get("prompt_logprobs"), len(ids))[len(rollout.prompt.ids) :]
        sampled = [
            _sampled_logp(row, token, t)
            for t, (row, token) in enumerate(zip(rows, rollout.ids.tolist(), strict=True))
        ]
        arrays: dict[str, np.ndarray] = {"sampled": np.array(sampled, dtype=np.float32)}
        if want.topk:
            best = [_best(row, want.topk, t) for t, row in enumerate(rows)]
            shape = (len(best), want.topk)
            arrays["topk_ids"] = np.array([i for i, _ in best], dtype=np.int32).reshape(shape)
            arrays["topk_logp"] = np.array([p for _, p in best], dtype=np.float32).reshape(shape)
        return arrays

    def _score_support(self, rollout: Rollout) -> np.ndarray:
        """Log-probs (T, K) of the ids the student chose; nothing is asked where K is 0."""
        if rollout.topk_ids.shape[1] == 0:
            return np.zeros(rollout.topk_ids.shape, dtype=np.float32)
        ids = [*rollout.prompt.ids, *rollout.ids.tolist()]
        scored = predicting_positions(len(rollout.prompt.ids), len(rollout))
        body = {
            "model": self.model,
            "token_ids": ids,
            "sampling_params": {
                "max_tokens": 1,
                "temperature": 1.0,
                "prompt_logprob_start": scored.start,
                "prompt_logprob_token_ids": rollout.topk_ids.tolist(),
            },
        }
        answer = self.http.post_json(GENERATE, body)
        encoded = answer.get("prompt_token_id_logprobs") if isinstance(answer, dict) else None
        values = _decode_array(encoded)
        if values.shape != rollout.topk_ids.shape:
            raise WrongAnswer(
                f"scores of chosen ids have shape {values.shape} for a support of "
                f"{rollout.topk_ids.shape}"
            )
        with np.errstate(over="ignore"):  # infinities are refused with the other answers
            return values.astype(np.float32)

    def _scores_support(self) -> bool:
        """Try the documented route on three tokens; a refusal of any kind means no."""
        support = np.array([[1, 2], [2, 3]], dtype=np.int32)
        try:
            self._score_support(Rollout.of_ids([1], [1, 2], topk_ids=support))
        except (Refusal, WrongAnswer):
            return False
        return True

    def _card(self, *, once: bool) -> dict[str, Any]:
        cards = model_cards(self.http, once=once)
        if cards is None:
            raise UserError(
                f"{self.http.key}={self.http.url}: {MODELS} lists no models; this is neither vLLM "
                "nor `opd serve-teacher`."
            )
        if self.model not in cards:
            section = self.http.section
            raise UserError(
                f"{section}.model={self.model}: the server at {self.http.url} serves "
                f"{', '.join(clean(n) for n in cards) or 'nothing'}. Set {section}.model to one of "
                "these, or start the server with --served-model-name."
            )
        return cards[self.model]


def tokenize(http: Http, model: str, text: str) -> list[int] | None:
    """Ids of a text by a server with vLLM's route for that, which SGLang has too; None without."""
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    try:
        answer = http.post_json(TOKENIZE, body)
    except Refusal as error:
        if error.status in (404, 405):
            return None
        raise
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    return tokens if isinstance(tokens, list) else None


def _decode_array(text: Any) -> np.ndarray:
    """An array from the base64 of a .npy file; arrays of objects are refused."""
    if not isinstance(text, str):
        raise WrongAnswer("no scores of chosen ids: this server ignores the request for them")
    try:
        data = io.BytesIO(base64.b64decode(text, validate=True))
        values = np.lib.format.read_array(data, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise WrongAnswer(f"scores of chosen ids are damaged: {error}") from None
    if values.dtype.kind != "f":
        raise WrongAnswer(f"scores of chosen ids have dtype {values.dtype}")
    return values


def _parse_rows(rows: Any, count: int) -> list[Row]:
    """One row per position; that of the first token is empty."""
    if rows is None:
        raise WrongAnswer("no prompt_logprobs: this server ignores the request for them")
    if not isinstance(rows, list) or len(rows) != count:
        size = len(rows) if isinstance(rows, list) else "no"
        raise WrongAnswer(f"{size} positions for {count} tokens")
    if rows[0] is not None:
        raise WrongAnswer("the first token has a score, so positions are shifted")
    return [{}, *(_parse_row(row) for row in rows[1:])]


def _parse_row(row: Any) -> Row:
    if not isinstance(row, dict):
        raise WrongAnswer("a position without log-probs")
    try:
        parsed = {int(i): (float(e["logprob"]), int(e.get("rank") or 0)) for i, e in row.items()}
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        raise WrongAnswer("log-probs of another form than vLLM's") from None
    for token, (value, _) in parsed.items():
        if not 0 <= token <= MAX_ID or abs(value) > LARGEST:
            raise WrongAnswer(f"no model has a token {token} with the log-prob {value}")
    return parsed


def _sampled_logp(row: Row, token: int, t: int) -> float:
    if token not in row:
        raise WrongAnswer(f"token {t} (id {token}) has no log-prob among those of its position")
    value = row[token][0]
    if not math.isfinite(value) or value < MIN_LOGPROB:
        raise WrongAnswer(f"token {t} (id {token}) has log-prob {value}: its probability is 0")
    return value


def _best(row: Row, k: int, t: int) -> tuple[list[int], list[float]]:
    """The k most probable tokens of a position; the sampled token may be in the row as well."""
    if len(row) not in (k, k + 1):
        raise WrongAnswer(f"{len(row)} top tokens at token {t}, {k} were asked for")
    ranked = sorted(row.items(), key=lambda item: -item[1][0])
    ranks = [rank for _, (_, rank) in ranked]
    if all(ranks):
        by_rank = sorted(row.values(), key=lambda entry: entry[1])
        if any(b[0] > a[0] + ABOVE_ZERO for a, b in itertools.pairwise(by_rank)):
            raise WrongAnswer(f"top-k is not sorted at token {t}: ranks and log-probs disagree")
    best = ranked[:k]
    return [i for i, _ in best], [value for _, (value, _) in best]
