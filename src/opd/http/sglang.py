"""What scoring and sampling share of SGLang's own API (`/generate` and what stands around it)."""

from __future__ import annotations

from typing import Any

from opd.http.client import Http, Refusal
from opd.http.vllm import MAX_ID

GENERATE = "/generate"
MODEL_INFO = ("/model_info", "/get_model_info")  # the second is the older name
VERSION = "weight_version"


def model_info(http: Http, *, once: bool = False) -> dict[str, Any] | None:
    """What an SGLang server says of its model; None for a server of another kind.

    Raises:
        Transient: no answer.
        Refusal: another one than "no such route", such as a missing key.
    """
    for path in MODEL_INFO:
        try:
            answer = http.get_json(path, once=once)
        except Refusal as error:
            if error.status in (404, 405):
                continue
            raise
        if isinstance(answer, dict) and "model_path" in answer:
            return answer
    return None


def meta_infos(answer: Any, n: int) -> list[dict[str, Any]] | None:
    """The `n` answers to a request, each with its `meta_info`; None for any other answer."""
    items = answer if isinstance(answer, list) else [answer]
    whole = [x for x in items if isinstance(x, dict) and isinstance(x.get("meta_info"), dict)]
    return whole if len(items) == n == len(whole) else None


def logprob_pairs(rows: Any, count: int) -> list[tuple[float | None, int]] | None:
    """`[log-prob or null, token id, ...]` of `count` tokens; None for anything else."""
    if not isinstance(rows, list) or len(rows) != count:
        return None
    pairs = []
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) < 2 or type(row[1]) is not int:
            return None
        if not 0 <= row[1] <= MAX_ID:
            return None
        value = row[0]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            return None
        try:
            pairs.append((None if value is None else float(value), row[1]))
        except OverflowError:  # an integer of hundreds of digits
            return None
    return pairs
