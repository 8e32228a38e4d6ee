"""Supervised examples: given completions to imitate, in the form of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opd.data.prompts import load_prompts
from opd.data.readers import Row, read_rows
from opd.errors import UserError
from opd.types import Prompt, Rollout


def make_example(index: int, prompt: Sequence[int], completion: Sequence[int]) -> Rollout:
    """A completion to imitate, from token ids; they end with a stop token."""
    return Rollout.of_ids(Prompt(index, tuple(prompt), ""), completion, finish="stop")


def read_sft_examples(
    path: str,
    tokenizer: Any,
    *,
    template: str | None,
    chat: dict[str, Any] | None,
    max_tokens: int,
    key: str = "loss.terms.sft_path",
) -> list[Rollout]:
    """Read rows of a prompt and its `completion` (or the last assistant turn of `messages`).

    A row whose `finish` or `finish_reason` is "length" was cut off: it gets no end token.

    Args:
        path: file or hub dataset, in any schema of `load_prompts`.
        tokenizer: the student's.
        template: as for prompts.
        chat: as for prompts.
        max_tokens: longer prompts are left out.
        key: configuration key named in errors.

    Raises:
        UserError: as `load_prompts`, and for a row without a completion.
    """
    prompts = load_prompts(path, tokenizer, template=template, chat=chat, max_tokens=max_tokens)
    rows = {row.index: row for row in read_rows(path)}
    examples = []
    for prompt in prompts.prompts:
        row = rows[prompt.index]
        text = _completion_of(row, key)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if "length" in (row.values.get("finish"), row.values.get("finish_reason")):
            examples.append(Rollout.of_ids(prompt, ids))
        else:
            examples.append(Rollout.of_ids(prompt, [*ids, tokenizer.eos_token_id], finish="stop"))
    return examples


def _completion_of(row: Row, key: str) -> str:
    text, messages = row.values.get("completion"), row.values.get("messages")
    if text is None and isinstance(messages, list) and messages:
        last = messages[-1]
        if isinstance(last, dict) and last.get("role") == "assistant":
            text = last.get("content")
    if not isinstance(text, str) or not text:
        raise UserError(
            f"{row.location}: no completion to learn. Rows of {key} need a `completion`, or "
            "`messages` that end with an assistant turn."
        )
    return text
