"""Prompt sets: any schema the field uses, rendered and tokenized once.

Text from files is data, never instructions: it reaches the template only as a value. Special tokens
written out inside it become special tokens all the same, so such rows are counted and said.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2

from opd.data.answers import gold
from opd.data.order import batch_indices
from opd.data.readers import Row, columns, kind, read_rows, require_one_kind
from opd.errors import UserError
from opd.rng import Stream
from opd.types import Prompt

logger = logging.getLogger(__name__)

PROMPT_COLUMNS = ("prompt", "messages", "problem", "question")
ANSWER_COLUMNS = ("answer", "ground_truth", "solution")
CHUNK = 512  # rows tokenized at once
TEMPLATE_LIMIT = 1_000_000  # characters a chat template may hold, or add to a conversation
# What this module decides itself, so that ids are made in one way.
RESERVED = {"tokenize", "add_generation_prompt", "continue_final_message", "return_tensors"}
RESERVED |= {"return_dict", "padding", "truncation", "max_length", "conversation"}

Message = dict[str, str]
Rendered = Literal["plain", "chat"]


@dataclass(frozen=True)
class PromptSet:
    """Prompts ready for a sampler.

    Attributes:
        prompts: in file order; `Prompt.index` is the row number in the file.
        dropped: rows left out because they are too long.
        rows: rows in the file.
        rendered: whether a chat template was applied.
        digest: sha256 over (index, ids, answer) of every prompt.
        special_text: kept rows whose own text spells a special token.
    """

    prompts: tuple[Prompt, ...]
    dropped: int
    rows: int
    rendered: Rendered
    digest: str
    special_text: int = 0

    def batch(self, step: int, size: int, *, seed: int, shuffle: bool) -> list[Prompt]:
        """The prompts of one step; `shuffle=False` repeats the order of the file."""
        total = len(self.prompts)
        if shuffle:
            indices = batch_indices(total, size, step, seed=seed, stream=Stream.PROMPT_ORDER)
        else:
            indices = [(step * size + i) % total for i in range(size)]
        return [self.prompts[i] for i in indices]


def load_prompts(
    path: str,
    tokenizer: Any,
    *,
    template: str | None,
    chat: dict[str, Any] | None,
    max_tokens: int,
    limit: int | None = None,
    context: int | None = None,
) -> PromptSet:
    """Read, render and tokenize a prompt set.

    Args:
        path: file or hub dataset (see `readers.read_rows`).
        tokenizer: the student's; a chat template is rendered through it alone (sandboxed).
        template: user text with `{problem}` in it, replaced literally: problems contain braces.
        chat: keywords of the chat template; None for plain text. {} gives plain text when the
            tokenizer has no template.
        max_tokens: longer prompts are dropped.
        limit: keep only the first so many prompts.
        context: longest prompt that leaves the models room for a completion.

    Raises:
        UserError: unreadable file, missing column, a row that is no prompt, template without
            `{problem}`, keywords for a chat template that does not exist, nothing short enough.
    """
    if template is not None and "{problem}" not in template:
        raise UserError(
            f"The template {template[:80]!r} does not say where the problem goes: write "
            "{problem} in it (prompts.template, eval.N.template), or set it to null."
        )
    rows = read_rows(path)
    column = prompt_column(path, rows)
    rendered = _rendering(tokenizer, chat)
    special = _special(tokenizer)
    longest = max_tokens if context is None else min(max_tokens, context)
    kept: list[Prompt] = []
    too_long: list[int] = []
    spelled = 0
    for row, turns, text, ids in _encoded(rows, column, tokenizer, template, rendered, chat or {}):
        if limit is not None and len(kept) == limit:
            break
        if len(ids) > longest:
            too_long.append(len(ids))
            continue
        spelled += special is not None and any(special.search(t["content"]) for t in turns)
        source = row.values.get("data_source")
        source = source if isinstance(source, str) and source else Path(path).name
        kept.append(Prompt(row.index, tuple(ids), text, answer_of(row), source))
    if not kept:
        raise UserError(
            f"{path}: all {len(too_long)} prompts are longer than {longest} tokens (the shortest "
            f"has {min(too_long)}). Raise prompts.max_tokens"
            + (", or lower rollout.max_new_tokens." if longest != max_tokens else ".")
        )
    if spelled:
        logger.warning(
            "%s: %d of %d prompts spell a special token in their own text; the model reads it as "
            "the real one.",
            path,
            spelled,
            len(kept),
        )
    return PromptSet(tuple(kept), len(too_long), len(rows), rendered, _digest(kept), spelled)


def _encoded(
    rows: list[Row],
    column: str,
    tokenizer: Any,
    template: str | None,
    rendered: Rendered,
    chat: dict[str, Any],
) -> Iterator[tuple[Row, list[Message], str, list[int]]]:
    """Row, its own turns, rendered text and ids; in chunks, which tokenizers do faster."""
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        turns = [conversation(row, column) for row in chunk]
        texts = [
            _render(tokenizer, _wrapped(t, template), rendered, chat, row.place)
            for row, t in zip(chunk, turns, strict=True)
        ]
        # A chat template writes its special tokens itself; plain text gets the tokenizer's own.
        encoded = tokenizer(texts, add_special_tokens=rendered == "plain", verbose=False)
        for row, t, text, ids in zip(chunk, turns, texts, encoded["input_ids"], strict=True):
            if not ids:
                raise UserError(f"{row.place}: the prompt has no tokens.")
            yield row, t, text, ids


def prompt_column(path: str, rows: list[Row]) -> str:
    """The column that holds the prompts.

    Raises:
        UserError: none of the known names, or a column of changing type.
    """
    found = columns(rows)
    column = next((c for c in PROMPT_COLUMNS if c in found), None)
    if column is None:
        raise UserError(
            f"{path} has no prompt column. Found: {', '.join(found) or 'no columns'}. Allowed: "
            f"{', '.join(PROMPT_COLUMNS)} (and {', '.join(ANSWER_COLUMNS)} or "
            "reward_model.ground_truth for the answer)."
        )
    require_one_kind(rows, column)
    return column


def conversation(row: Row, column: str) -> list[Message]:
    """The turns a student answers, the last one the user's.

    A conversation that ends with the assistant loses that turn: it is what the student must write.

    Raises:
        UserError: with the row's place and what is wrong with it.
    """
    value = row.values.get(column)
    if isinstance(value, str):
        turns = [{"role": "user", "content": value}]
    elif isinstance(value, list):
        turns = [_turn(turn, f"{row.place}, {column}[{i}]") for i, turn in enumerate(value)]
        if turns and turns[-1]["role"] == "assistant":
            turns = turns[:-1]
    else:
        raise UserError(
            f"{row.place}: column {column!r} must be text or a list of messages, found "
            f"{kind(value)}."
        )
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        last = repr(turns[-1]["role"]) if turns else "nothing"
        raise UserError(
            f"{row.place}: column {column!r} has no user turn to answer; it ends with {last}."
        )
    if not turns[-1]["content"].strip():
        raise UserError(f"{row.place}: the prompt in column {column!r} is empty.")
    return turns


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, dict):
        raise UserError(
            f'{place}: a message looks like {{"role": "user", "content": "..."}}, found '
            f"{kind(turn)}."
        )
    for name in ("role", "content"):
        if not isinstance(turn.get(name), str):
            raise UserError(
                f"{place}: a message needs text as its {name!r}, found {kind(turn.get(name))}."
            )
    return {"role": turn["role"], "content": turn["content"]}


def answer_of(row: Row) -> str | None:
    """The row's ground truth; None when it has none.

    Raises:
        UserError: a ground truth that is neither text nor number.
    """
    reward = row.values.get("reward_model")
    name, value = "reward_model.ground_truth", None
    if isinstance(reward, dict):
        value = reward.get("ground_truth")
    for column in ANSWER_COLUMNS:
        if value is None or value == "":
            name, value = column, row.values.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise UserError(f"{row.place}: {name} must be text or a number, found {kind(value)}.")
    return None if value is None else gold(str(value)) or None


def _wrapped(turns: list[Message], template: str | None) -> list[Message]:
    if template is None:
        return turns
    text = template.replace("{problem}", turns[-1]["content"])
    return [*turns[:-1], {"role": turns[-1]["role"], "content": text}]


def _rendering(tokenizer: Any, chat: dict[str, Any] | None) -> Rendered:
    if chat is None:
        return "plain"
    reserved = sorted(set(chat) & RESERVED)
    if reserved:
        raise UserError(
            f"chat: {', '.join(reserved)} cannot be set; prompts are always rendered with a "
            "generation prompt and tokenized once. Remove it from prompts.chat."
        )
    own = chat.get("chat_template", tokenizer.chat_template)
    if own is None:
        if chat:
            raise UserError(
                f"chat={chat}, but this tokenizer has no chat template (a base model?). Set "
                "prompts.chat: null (and eval.N.chat: null) for plain text."
            )
        return "plain"
    if len(str(own)) > TEMPLATE_LIMIT:
        raise UserError(
            f"The chat template has {len(str(own))} characters; at most {TEMPLATE_LIMIT} are "
            "rendered. Set prompts.chat: null for plain text."
        )
    return "chat"


def _render(
    tokenizer: Any, turns: list[Message], rendered: Rendered, chat: dict[str, Any], place: str
) -> str:
    written = sum(len(turn["content"]) for turn in turns)
    if rendered == "plain":
        if any(turn["role"] not in ("system", "user") for turn in turns):
            raise UserError(
                f"{place}: a conversation of several turns cannot be written as plain text. Use a "
                "model with a chat template (prompts.chat: {}), or prompts of one user message."
            )
        text = "\n\n".join(turn["content"] for turn in turns)
    else:
        try:
            text = str(
                tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True, **chat
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{place}: the chat template refuses this conversation: {error}\n"
                "Change the row, prompts.chat, or set prompts.chat: null for plain text."
            ) from None
    if len(text) > TEMPLATE_LIMIT + 2 * written:
        raise UserError(
            f"{place}: the chat template turned {written} characters into {len(text)}; it may add "
            f"at most {TEMPLATE_LIMIT}. Set prompts.chat: null for plain text."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: the prompt holds half a character (a lone surrogate, "
            f"U+{ord(text[error.start]):04X}), which no tokenizer can read. Remove it."
        ) from None
    return text


def _special(tokenizer: Any) -> re.Pattern[str] | None:
    """What spells a special token; None for a tokenizer without any."""
    tokens = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    tokens |= set(tokenizer.all_special_tokens)
    found = sorted((t for t in tokens if t), key=len, reverse=True)
    return re.compile("|".join(re.escape(t) for t in found)) if found else None


def _digest(prompts: list[Prompt]) -> str:
    digest = hashlib.sha256()
    for p in prompts:
        digest.update(json.dumps([p.index, p.ids, p.answer]).encode() + b"\n")
    return digest.hexdigest()
