"""Prompt sets in any common schema, rendered and tokenized once.

Text from files is data, never instructions: the template gets it only as a value. Special tokens
spelled in it still become special tokens, so such rows are counted and warned of.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.meta
import jinja2.sandbox

from opd.data.answers import final_answer
from opd.data.cpu_limit import cpu_limit
from opd.data.order import Share, batch_indices, mixed_indices
from opd.data.readers import (
    Row,
    Source,
    column_names,
    json_type,
    read_rows,
    require_one_type,
    source_name,
)
from opd.data.routes import Route
from opd.errors import UserError
from opd.rng import Stream
from opd.types import Prompt

logger = logging.getLogger(__name__)

PROMPT_COLUMNS = ("prompt", "messages", "problem", "question")
ANSWER_COLUMNS = ("answer", "ground_truth", "solution")
CHUNK = 512  # rows tokenized at once
RENDER_SECONDS = 5  # of CPU, for one conversation; ordinary ones take milliseconds
TEMPLATE_LIMIT = 1_000_000  # characters a chat template may hold, or add to a conversation
# Set by this module alone, so that there is one way to make ids.
RESERVED = {"tokenize", "add_generation_prompt", "continue_final_message", "return_tensors"}
RESERVED |= {"return_dict", "padding", "truncation", "max_length", "conversation"}

SPECIAL_TEXT = (
    "%s: %d of %d prompts spell a special token in their own text; the model reads it as the real "
    "one."
)

# What transformers gives every template, and its own tag, which plain Jinja does not know.
_GIVEN = {"messages", "add_generation_prompt", "bos_token", "eos_token", "raise_exception"}
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")

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
        special_text: number of prompts whose own text spells a special token.
        shares: of several files, how many prompts of each a step takes; empty for one.
        routes: who scores each prompt, by its index; empty for one teacher.
    """

    prompts: tuple[Prompt, ...]
    dropped: int
    rows: int
    rendered: Rendered
    digest: str
    special_text: int = 0
    shares: tuple[Share, ...] = ()
    routes: Mapping[int, Route] = field(default_factory=dict)

    def batch(self, step: int, size: int, *, seed: int, shuffle: bool) -> list[Prompt]:
        """The prompts of one step; `shuffle=False` repeats the order of the file."""
        total = len(self.prompts)
        if self.shares:
            indices = mixed_indices(self.shares, size, step, seed=seed, shuffle=shuffle)
        elif shuffle:
            indices = batch_indices(total, size, step, seed=seed, stream=Stream.PROMPT_ORDER)
        else:
            indices = [(step * size + i) % total for i in range(size)]
        return [self.prompts[i] for i in indices]


def load_prompts(
    source: Source,
    tokenizer: Any,
    *,
    template: str | None,
    chat: dict[str, Any] | None,
    max_tokens: int,
    limit: int | None = None,
) -> PromptSet:
    """Read, render and tokenize a prompt set.

    Args:
        source: file or hub dataset, or several (see `readers.read_rows`).
        tokenizer: the student's; a chat template is rendered through it alone (sandboxed).
        template: user text with `{problem}` in it, replaced literally: problems contain braces.
        chat: keywords of the chat template; None for plain text. {} gives plain text when the
            tokenizer has no template.
        max_tokens: longer prompts are dropped.
        limit: keep only the first so many prompts.

    Raises:
        UserError: unreadable file, missing column, a row that is no prompt, template without
            `{problem}`, keywords for a chat template that does not exist, no prompt short enough.
    """
    if template is not None and "{problem}" not in template:
        raise UserError(
            f"The template {template[:80]!r} does not say where the problem goes: write "
            "{problem} in it (prompts.template, eval.N.template), or set it to null."
        )
    rows, path = read_rows(source), source_name(source)
    column = prompt_column(path, rows)
    warn_of_misspelt_answers(path, rows)
    rendered = choose_rendering(tokenizer, chat)
    special = _special_token_pattern(tokenizer)
    conversations = ((row, conversation(row, column)) for row in rows)
    tokenized = _tokenize(conversations, tokenizer, template, rendered, chat or {})
    kept: list[Prompt] = []
    dropped_lengths: list[int] = []
    special_text = 0
    for row, turns, text, ids in tokenized:
        if limit is not None and len(kept) == limit:
            break
        if len(ids) > max_tokens:
            dropped_lengths.append(len(ids))
            continue
        special_text += special is not None and any(special.search(t["content"]) for t in turns)
        origin = row.values.get("data_source")
        origin = origin if isinstance(origin, str) and origin else Path(path).name
        kept.append(Prompt(row.index, tuple(ids), text, answer_of(row), origin))
    if not kept:
        raise UserError(
            f"{path}: all {len(dropped_lengths)} prompts are longer than {max_tokens} tokens (the "
            f"shortest has {min(dropped_lengths)}). Raise prompts.max_tokens; if the models' "
            "context is the limit, lower rollout.max_new_tokens."
        )
    if special_text:
        logger.warning(SPECIAL_TEXT, path, special_text, len(kept))
    return PromptSet(
        tuple(kept), len(dropped_lengths), len(rows), rendered, _digest(kept), special_text
    )


def _tokenize(
    conversations: Iterable[tuple[Row, list[Message]]],
    tokenizer: Any,
    template: str | None,
    rendered: Rendered,
    chat: dict[str, Any],
) -> Iterator[tuple[Row, list[Message], str, list[int]]]:
    """Yield row, its own turns, rendered text and ids; in chunks, which tokenizers do faster."""
    remaining = iter(conversations)
    while chunk := list(islice(remaining, CHUNK)):
        texts = [
            render(tokenizer, apply_template(turns, template), rendered, chat, row.location)
            for row, turns in chunk
        ]
        encoded = encode_texts(tokenizer, texts, rendered)
        for (row, turns), text, ids in zip(chunk, texts, encoded, strict=True):
            if not ids:
                raise UserError(f"{row.location}: the prompt has no tokens.")
            yield row, turns, text, ids


def encode_texts(tokenizer: Any, texts: list[str], rendered: Rendered) -> list[list[int]]:
    """Token ids of rendered prompts.

    A chat template writes its special tokens itself; plain text gets the tokenizer's own.
    """
    encoded = tokenizer(texts, add_special_tokens=rendered == "plain", verbose=False)
    return list(encoded["input_ids"])


def warn_of_misspelt_answers(path: str, rows: list[Row]) -> None:
    """Warn of a column whose name is nearly that of the answers, where no other has them."""
    names = column_names(rows)
    if any(name in names for name in (*ANSWER_COLUMNS, "reward_model")):
        return
    for name in names:
        if near := difflib.get_close_matches(name, ANSWER_COLUMNS, n=1, cutoff=0.75):
            logger.warning("%s: column %r is not read. Did you mean %r?", path, name, near[0])


def prompt_column(path: str, rows: list[Row]) -> str:
    """Find the column that holds the prompts.

    Raises:
        UserError: none of the known names, or a column of changing type.
    """
    names = column_names(rows)
    column = next((c for c in PROMPT_COLUMNS if c in names), None)
    if column is None:
        raise UserError(
            f"{path} has no prompt column. Found: {', '.join(names) or 'no columns'}. Allowed: "
            f"{', '.join(PROMPT_COLUMNS)} (and {', '.join(ANSWER_COLUMNS)} or "
            "reward_model.ground_truth for the answer)."
        )
    require_one_type(rows, column)
    return column


def conversation(row: Row, column: str) -> list[Message]:
    """The turns a student answers, the last one the user's.

    A last turn of the assistant is left out: the student generates it.

    Raises:
        UserError: with the row's location and what is wrong with it.
    """
    if column not in row.values:  # of several files each may have its own
        column = next((name for name in PROMPT_COLUMNS if name in row.values), column)
    value = row.values.get(column)
    if isinstance(value, str):
        turns = [{"role": "user", "content": value}]
    elif isinstance(value, list):
        turns = [_turn(turn, f"{row.location}, {column}[{i}]") for i, turn in enumerate(value)]
        if turns and turns[-1]["role"] == "assistant":
            turns = turns[:-1]
    else:
        raise UserError(
            f"{row.location}: column {column!r} must be text or a list of messages, found "
            f"{json_type(value)}."
        )
    if not turns or turns[-1]["role"] not in ("user", "tool"):
        last = repr(turns[-1]["role"]) if turns else "nothing"
        raise UserError(
            f"{row.location}: column {column!r} has no user turn to answer; it ends with {last}."
        )
    if not turns[-1]["content"].strip():
        raise UserError(f"{row.location}: the prompt in column {column!r} is empty.")
    return turns


def _turn(turn: Any, location: str) -> Message:
    if not isinstance(turn, dict):
        raise UserError(
            f'{location}: a message looks like {{"role": "user", "content": "..."}}, found '
            f"{json_type(turn)}."
        )
    for name in ("role", "content"):
        if not isinstance(turn.get(name), str):
            given = json_type(turn.get(name))
            raise UserError(f"{location}: a message needs text as its {name!r}, found {given}.")
    return {"role": turn["role"], "content": turn["content"]}


def answer_of(row: Row) -> str | None:
    """The row's ground truth; None when it has none, or NaN.

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
        given = json_type(value)
        raise UserError(f"{row.location}: {name} must be text or a number, found {given}.")
    return None if value in (None, "") or value != value else final_answer(str(value)) or None


def apply_template(turns: list[Message], template: str | None) -> list[Message]:
    """The turns, the last one put into a template; None leaves them as they are."""
    if template is None:
        return turns
    text = template.replace("{problem}", turns[-1]["content"])
    return [*turns[:-1], {"role": turns[-1]["role"], "content": text}]


def choose_rendering(tokenizer: Any, chat: dict[str, Any] | None) -> Rendered:
    """Whether prompts go through the chat template.

    Raises:
        UserError: keywords that cannot be set or are none of the template's, or no template.
    """
    if chat is None:
        return "plain"
    reserved = sorted(set(chat) & RESERVED)
    if reserved:
        raise UserError(
            f"chat: {', '.join(reserved)} cannot be set; prompts are always rendered with a "
            "generation prompt and tokenized once. Remove it from prompts.chat."
        )
    chat_template = chat.get("chat_template", tokenizer.chat_template)
    if chat_template is None:
        if chat:
            raise UserError(
                f"chat={chat}, but this tokenizer has no chat template (a base model?). Set "
                "prompts.chat: null (and eval.N.chat: null) for plain text."
            )
        return "plain"
    _require_known_words(chat_template, chat)
    if len(str(chat_template)) > TEMPLATE_LIMIT:
        raise UserError(
            f"The chat template has {len(str(chat_template))} characters; at most "
            f"{TEMPLATE_LIMIT} are rendered. Set prompts.chat: null for plain text."
        )
    return "chat"


def _require_known_words(chat_template: Any, chat: dict[str, Any]) -> None:
    """Refuse keywords that the template never looks at: a misspelt one would change nothing."""
    texts = chat_template.values() if isinstance(chat_template, dict) else [chat_template]
    parser = jinja2.sandbox.SandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    words: set[str] = set()
    try:
        for text in texts:
            tree = parser.parse(_GENERATION.sub("", str(text)))
            words |= jinja2.meta.find_undeclared_variables(tree)
    except jinja2.TemplateError as error:
        raise UserError(f"prompts.chat: the chat template is broken: {error}") from None
    unknown = sorted(set(chat) - words - {"chat_template", "tools", "documents"})
    if unknown:
        near = difflib.get_close_matches(unknown[0], words, n=1)
        known = sorted(words - _GIVEN)
        hint = f"Did you mean {near[0]}?" if near else f"It knows: {', '.join(known) or 'none'}."
        raise UserError(
            f"prompts.chat: {', '.join(unknown)} is no word of this chat template, so it would "
            f"change nothing. {hint}"
        )


def render(
    tokenizer: Any, turns: list[Message], rendered: Rendered, chat: dict[str, Any], location: str
) -> str:
    """The text of a conversation whose next turn is the model's.

    Raises:
        UserError: with the row's location: the template refuses it, or it is no text.
    """
    content_length = sum(len(turn["content"]) for turn in turns)
    if rendered == "plain":
        if any(turn["role"] not in ("system", "user") for turn in turns):
            raise UserError(
                f"{location}: a conversation of several turns cannot be rendered as plain text. "
                "Use a model with a chat template (prompts.chat: {}), or prompts of one message."
            )
        text = "\n\n".join(turn["content"] for turn in turns)
    else:
        endless = f"{location}: the chat template does not end. prompts.chat: null is plain text."
        try:
            with cpu_limit(RENDER_SECONDS, endless):
                options = {"tokenize": False, "add_generation_prompt": True, **chat}
                text = str(tokenizer.apply_chat_template(turns, **options))
        except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{location}: the chat template refuses this conversation: {error}\n"
                "Change the row, prompts.chat, or set prompts.chat: null for plain text."
            ) from None
    if len(text) > TEMPLATE_LIMIT + 2 * content_length:
        raise UserError(
            f"{location}: the chat template turned {content_length} characters into {len(text)}; "
            f"it may add at most {TEMPLATE_LIMIT}. Set prompts.chat: null for plain text."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{location}: the prompt holds half a character (a lone surrogate, "
            f"U+{ord(text[error.start]):04X}), which no tokenizer can read. Remove it."
        ) from None
    return text


def _special_token_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Matches the text of any special token; None for a tokenizer without any."""
    tokens = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    tokens |= set(tokenizer.all_special_tokens)
    longest_first = sorted((t for t in tokens if t), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _digest(prompts: list[Prompt]) -> str:
    digest = hashlib.sha256()
    for p in prompts:
        digest.update(json.dumps([p.index, p.ids, p.answer]).encode() + b"\n")
    return digest.hexdigest()
