"""SGLang's `/generate` as a teacher: `input_token_logprobs` of given ids, and its own top k.

Stock SGLang scores one list of chosen ids at all positions of a request (`token_ids_logprob`). What
this needs is a list per position (`token_ids_logprob_positions`), which some builds have: it is
tried, and its numbers are compared with the top tokens of the same text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from opd.core.batch import predicting_positions
from opd.errors import UserError
from opd.http import Http, Refusal, clean
from opd.http.sglang import GENERATE, VERSION, logprob_pairs, meta_infos, model_info
from opd.http.vllm import MIN_LOGPROB, model_cards, served_length
from opd.teachers.validate import WrongAnswer
from opd.teachers.vllm_api import tokenize
from opd.types import Kind, Rollout, Scores, Want

PROBE = (1, 2, 3)  # ids that are scored to find out what the server takes
PROBE_GAP = 1e-2  # nats between two scores of one token by one server


class SglangDialect:
    """`opd.teachers.dialect.Dialect` of an SGLang server."""

    def __init__(self, http: Http, model: str) -> None:
        """Find the model, and whether student-chosen ids can be scored.

        Args:
            http: client of the server's root.
            model: the name under which the server serves the teacher.

        Raises:
            Transient: no answer.
            UserError: the server does not serve `model`.
        """
        self.http, self.model = http, model
        self.context = served_length(self._card(once=False))
        kinds = {Kind.SAMPLED, Kind.TOPK}
        if self._scores_support():
            kinds.add(Kind.SUPPORT)
        self.kinds = frozenset(kinds)

    def identity(self, *, once: bool = False) -> str:
        """See `Dialect.identity`."""
        card, info = self._card(once=once), model_info(self.http, once=once) or {}
        return (
            f"{card['id']} root={info.get('model_path')} length={card.get('max_model_len')} "
            f"weights={info.get(VERSION)}"
        )

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
        ids = [*rollout.prompt.ids, *rollout.ids.tolist()]
        start = predicting_positions(len(rollout.prompt.ids), len(rollout)).start
        body: dict[str, Any] = {"top_logprobs_num": want.topk}
        if want.support:
            none: list[list[int]] = [[] for _ in range(len(rollout.prompt.ids))]
            body["token_ids_logprob_positions"] = none + rollout.topk_ids.tolist()
        info = self._ask(ids, start, body)
        pairs = logprob_pairs(info.get("input_token_logprobs"), len(ids) - start)
        if pairs is None:
            raise WrongAnswer(
                f"no input_token_logprobs of the {len(ids) - start} tokens from the last one of "
                "the prompt on"
            )
        if [token for _, token in pairs] != ids[start:]:
            raise WrongAnswer("the scored ids are not the ids that were sent")
        arrays: dict[str, Any] = {"sampled": _finite([p for p, _ in pairs[1:]])}
        if want.topk:
            best, values = _rows(info.get("input_top_logprobs"), len(rollout), want.topk)
            arrays |= {"topk_ids": best, "topk_logp": values}
        if want.support:
            chosen, values = _rows(
                info.get("input_token_ids_logprobs"), len(rollout), rollout.topk_ids.shape[1]
            )
            if not np.array_equal(chosen, rollout.topk_ids):
                raise WrongAnswer("scores of other ids than were chosen")
            arrays |= {"support": values, "log_z": np.zeros(len(rollout), dtype=np.float32)}
        return Scores(**arrays)

    def _ask(self, ids: Sequence[int], start: int, fields: dict[str, Any]) -> dict[str, Any]:
        """`meta_info` of a request that scores ids from `start` on and generates nothing."""
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": start,
        }
        answers = meta_infos(self.http.post_json(GENERATE, body | fields), 1)
        if answers is None:
            raise WrongAnswer("the answer does not hold exactly one meta_info")
        info: dict[str, Any] = answers[0]["meta_info"]
        return info

    def _scores_support(self) -> bool:
        """Have ids scored that differ from position to position; any other answer means no."""
        rollout = Rollout.of_ids(PROBE[:1], PROBE[1:])
        try:
            known = self._score_one(rollout, Want(sampled=True, topk=2))
            assert known.topk_ids is not None
            assert known.topk_logp is not None
            chosen = known.topk_ids[:, ::-1].copy()
            asked = Rollout.of_ids(PROBE[:1], PROBE[1:], topk_ids=chosen)
            scores = self._score_one(asked, Want(sampled=True, support=True))
        except (Refusal, WrongAnswer):
            return False
        assert scores.support is not None
        gap = np.abs(scores.support[:, ::-1] - known.topk_logp).max()
        return bool(gap < PROBE_GAP)

    def _card(self, *, once: bool) -> dict[str, Any]:
        cards = model_cards(self.http, once=once) or {}
        if self.model not in cards:
            section = self.http.section
            raise UserError(
                f"{section}.model={self.model}: the SGLang server at {self.http.url} serves "
                f"{', '.join(clean(n) for n in cards) or 'nothing'}. Set {section}.model to one of "
                "these, or start the server with --served-model-name."
            )
        return cards[self.model]


def _finite(values: Sequence[float | None]) -> np.ndarray:
    """Log-probs (T,) that are all there and not of probability 0."""
    for t, value in enumerate(values):
        if value is None or not math.isfinite(value) or value < MIN_LOGPROB:
            raise WrongAnswer(f"token {t} has log-prob {value}")
    return np.array(values, dtype=np.float32)


def _rows(rows: Any, count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probs (count, width) of the last `count` positions."""
    if not isinstance(rows, list) or len(rows) != count + 1:
        size = len(rows) if isinstance(rows, list) else "no"
        raise WrongAnswer(f"{size} positions with top tokens for {count + 1}")
    ids = np.zeros((count, width), dtype=np.int32)
    values = np.zeros((count, width), dtype=np.float32)
    for t, row in enumerate(rows[1:]):
        pairs = logprob_pairs(row, width)
        if pairs is None:
            raise WrongAnswer(f"not {width} log-probs at token {t}")
        ids[t], values[t] = [i for _, i in pairs], _finite([p for p, _ in pairs])
    return ids, values
