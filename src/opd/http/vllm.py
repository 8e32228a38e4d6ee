"""What scoring and sampling share of vLLM's API."""

from __future__ import annotations

from typing import Any

from opd.http.client import Http

COMPLETIONS, MODELS = "/v1/completions", "/v1/models"
MIN_LOGPROB = -9998.0  # vLLM sends -9999 for minus infinity
MAX_ID = 2**31 - 1  # no vocabulary has more tokens, and ids are 32-bit integers here


def model_cards(http: Http, *, once: bool = False) -> dict[str, dict[str, Any]] | None:
    """The models a server lists, by name; None if the answer is no list of models.

    Raises:
        Transient: no answer.
        Refusal: no such route.
    """
    answer = http.get_json(MODELS, once=once)
    cards = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(cards, list):
        return None
    return {str(card.get("id")): dict(card) for card in cards if isinstance(card, dict)}


def served_length(card: dict[str, Any]) -> int | None:
    """Tokens of prompt + completion that a model takes, by its card; None where it does not say.

    SGLang's cards have it under the same name.
    """
    length = card.get("max_model_len")
    return length if type(length) is int and length > 0 else None


def only_choice(answer: Any) -> dict[str, Any] | None:
    """The choice of a completion with exactly one; None for any other answer."""
    choices = choices_of(answer, 1)
    return None if choices is None else choices[0]


def choices_of(answer: Any, n: int) -> list[dict[str, Any]] | None:
    """The `n` choices of an answer in the order of their indices; None for any other answer."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != n:
        return None
    if not all(isinstance(choice, dict) for choice in choices):
        return None
    if n == 1:
        return choices
    by_index = {choice.get("index"): choice for choice in choices}
    return [by_index[i] for i in range(n)] if set(by_index) == set(range(n)) else None
