"""What is asked of a server that generates, and what its answers may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from opd.http.vllm import MIN_LOGPROB
from opd.types import Prompt

MAX_LOGPROB = 1e-4  # rounding may raise a log-prob above 0


class WrongRollout(ValueError):
    """An answer that does not hold completions of the prompt that was sent."""


class ServerLost(Exception):
    """The server does not answer, or no longer has the weights it was given."""


@dataclass(frozen=True)
class CompletionRequest:
    """Some completions of one prompt.

    Attributes:
        prompt: what is continued.
        first: sample index of the first completion.
        n: how many.
        body: the request, without model, prompt, n and seed.
        seed: of the first completion; the next ones have the numbers after it.
    """

    prompt: Prompt
    first: int
    n: int
    body: dict[str, Any]
    seed: int


class TextScores(NamedTuple):
    """What a server makes of a text: tokens after it, their log-probs, those of the text itself."""

    generated: list[int]
    made: np.ndarray  # (G,)
    text: np.ndarray  # (L - 1,), of all tokens but the first


def require_end(ids: list[int], body: dict[str, Any]) -> None:
    """Check that a completion ends with a stop token or at its limit, and nowhere before.

    Raises:
        WrongRollout: it does not.
    """
    limit, stop = body["max_tokens"], body["stop_token_ids"]
    if not 0 < len(ids) <= limit:
        raise WrongRollout(f"{len(ids)} tokens")
    if any(token in stop for token in ids[:-1]) or (ids[-1] not in stop and len(ids) < limit):
        raise WrongRollout("it does not end where it should")


def parse_logp(choice: dict[str, Any], count: int) -> np.ndarray:
    """Log-probs (T,) of the sampled tokens of a choice.

    Raises:
        WrongRollout: they are missing, or no log-probs.
    """
    logprobs = choice.get("logprobs")
    values = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    if not isinstance(values, list) or len(values) != count:
        raise WrongRollout("log-probs of the tokens are missing")
    if not all(isinstance(v, int | float) and MIN_LOGPROB < v <= MAX_LOGPROB for v in values):
        raise WrongRollout("a log-prob is above 0 or not a number")
    return np.array(values, dtype=np.float32)
