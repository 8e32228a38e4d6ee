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
from opd.teachers.validate import ABOVE_ZERO, WrongAnswer
from opd.types import Kind, Rollout, Scores, Want

COMPLETIONS, MODELS, TOKENIZE = "/v1/completions", "/v1/models", "/tokenize"
GENERATE = "/inference/v1/generate"
IMPOSSIBLE = -9998.0  # vLLM writes -9999 for minus infinity


class VllmDialect:
    """`opd.teachers.remote.Dialect` of a stock vLLM server."""

    max_topk: int | None = None

    def __init__(self, http: Http, model: str, *, probe_support: bool = True) -> None:
        """Find the model and whether student-chosen ids can be scored.

        Raises:
            Transient: no answer.
            UserError: the server does not serve `model`.
        """
        self.http, self.model = http, model
        card = self._card(once=False)
        length = card.get("max_model_len")
        # One token is always generated beside the scored ones.
        self.context = length - 1 if type(length) is int else None
        self.chosen_ids = probe_support and self._offers_chosen_ids()
        own = {Kind.SAMPLED, Kind.TOPK}
        self.kinds = frozenset(own | {Kind.SUPPORT} if self.chosen_ids else own)

    def identity(self, *, once: bool = False) -> str:
        """See `Dialect.identity`; `created` is the time of asking and says nothing."""
        card = self._card(once=once)
        return f"{card['id']} root={card.get('root')} length={card.get('max_model_len')}"

    def tokenize(self, text: str) -> list[int] | None:
        """See `Dialect.tokenize`."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            answer = self.http.post_json(TOKENIZE, body)
        except Refusal as error:
            if error.status in (404, 405):
                return None
            raise
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        return tokens if isinstance(tokens, list) else None

    def batches(self, rollouts: Sequence[Rollout]) -> list[list[int]]:
        """See `Dialect.batches`; one sequence a request, so that a retry repeats little."""
        return [[i] for i in range(len(rollouts))]

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        """See `Dialect.score`."""
        return [self._one(rollout, want) for rollout in rollouts]

    def _one(self, rollout: Rollout, want: Want) -> Scores:
        found: dict[str, Any] = {}
        if want.sampled or want.topk or not want.support:
            found |= self._completion(rollout, want)
        if want.support:
            found["support"] = self._chosen(rollout)
            found["log_z"] = np.zeros(len(rollout), dtype=np.float32)
        return Scores(**found)

    def _completion(self, rollout: Rollout, want: Want) -> dict[str, Any]:
        """Sampled-token log-probs and the teacher's own top k."""
        ids = [*rollout.prompt.ids, *rollout.ids.tolist()]
        body = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": max(1, want.topk),
            "return_token_ids": True,
        }
        choice = _only_choice(self.http.post_json(COMPLETIONS, body))
        echoed = choice.get("prompt_token_ids")
        if echoed is not None and echoed != ids:
            raise WrongAnswer("the scored ids are not the ids that were sent")
        rows = _rows(choice.get("prompt_logprobs"), len(ids))[len(rollout.prompt.ids) :]
        drawn = rollout.ids.tolist()
        found: dict[str, Any] = {
            "sampled": np.array(
                [_of(row, i, t) for t, (row, i) in enumerate(zip(rows, drawn, strict=True))],
                dtype=np.float32,
            )
        }
        if want.topk:
            tops = [_top(row, want.topk, t) for t, row in enumerate(rows)]
            width = (len(tops), want.topk)
            found["topk_ids"] = np.array([i for i, _ in tops], dtype=np.int32).reshape(width)
            found["topk_logp"] = np.array([p for _, p in tops], dtype=np.float32).reshape(width)
        return found

    def _chosen(self, rollout: Rollout) -> np.ndarray:
        """Log-probs (T, K) of the student's own ids."""
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
        values = _npy(answer.get("prompt_token_id_logprobs") if isinstance(answer, dict) else None)
        if values.shape != rollout.topk_ids.shape:
            raise WrongAnswer(
                f"chosen ids have shape {values.shape} for a support of {rollout.topk_ids.shape}"
            )
        return values.astype(np.float32)

    def _offers_chosen_ids(self) -> bool:
        """Try the documented route on three tokens; a refusal of any kind means no."""
        support = np.array([[1, 2], [2, 3]], dtype=np.int32)
        try:
            self._chosen(Rollout.of_ids([1], [1, 2], topk_ids=support))
        except (Refusal, WrongAnswer):
            return False
        return True

    def _card(self, *, once: bool) -> dict[str, Any]:
        listed = self.http.get_json(MODELS, once=once)
        cards = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(cards, list):
            raise UserError(
                f"{self.http.key}={self.http.url}: {MODELS} lists no models; this is neither vLLM "
                "nor `opd serve-teacher`."
            )
        known = {str(c.get("id")): c for c in cards if isinstance(c, dict)}
        if self.model not in known:
            section = self.http.section
            raise UserError(
                f"{section}.model={self.model}: the server at {self.http.url} serves "
                f"{', '.join(clean(n) for n in known) or 'nothing'}. Set {section}.model to one of "
                "these, or start the server with --served-model-name."
            )
        return dict(known[self.model])


def _npy(text: Any) -> np.ndarray:
    """An array in base64 of its .npy form; what could hold objects is refused."""
    if not isinstance(text, str):
        raise WrongAnswer("no scores of chosen ids: this server ignores the request for them")
    try:
        data = io.BytesIO(base64.b64decode(text, validate=True))
        values = np.lib.format.read_array(data, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise WrongAnswer(f"scores of chosen ids are damaged: {error}") from None
    if values.dtype.kind != "f":
        raise WrongAnswer(f"scores of chosen ids are of type {values.dtype}")
    return values


def _only_choice(answer: Any) -> dict[str, Any]:
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise WrongAnswer("the answer does not hold exactly one choice")
    return choices[0]


def _rows(rows: Any, count: int) -> list[dict[int, tuple[float, int]]]:
    """Position to {id: (log-prob, rank)}; the first position has none."""
    if rows is None:
        raise WrongAnswer("no prompt_logprobs: this server ignores the request for them")
    if not isinstance(rows, list) or len(rows) != count:
        size = len(rows) if isinstance(rows, list) else "no"
        raise WrongAnswer(f"{size} positions for {count} tokens")
    if rows[0] is not None:
        raise WrongAnswer("the first token has a score, so positions are shifted")
    return [{}, *(_table(row) for row in rows[1:])]


def _table(row: Any) -> dict[int, tuple[float, int]]:
    if not isinstance(row, dict):
        raise WrongAnswer("a position without log-probs")
    try:
        return {int(i): (float(e["logprob"]), int(e.get("rank") or 0)) for i, e in row.items()}
    except (TypeError, ValueError, KeyError, AttributeError):
        raise WrongAnswer("log-probs of another form than vLLM's") from None


def _of(row: dict[int, tuple[float, int]], token: int, t: int) -> float:
    if token not in row:
        raise WrongAnswer(f"token {t} (id {token}) has no score among those of its position")
    value = row[token][0]
    if not math.isfinite(value) or value < IMPOSSIBLE:
        raise WrongAnswer(f"token {t} (id {token}) has log-prob {value}: no probability at all")
    return value


def _top(row: dict[int, tuple[float, int]], k: int, t: int) -> tuple[list[int], list[float]]:
    """The k most probable of a position; the actual token may stand beside them."""
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
