"""The prompts as the teacher sees them: the student's own message, and more.

The completion is the same on both sides, so scores belong to its tokens whatever the length of
the teacher's prompt. Text of a row is put in as it is, never read as a template.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opd.data.prompts import (
    Message,
    PromptSet,
    answer_of,
    apply_template,
    choose_rendering,
    conversation,
    encode_texts,
    prompt_column,
    render,
)
from opd.data.readers import Row, Source, read_rows, source_name
from opd.errors import UserError
from opd.types import Prompt

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Rendering:
    """How rows become the student's prompts, which the teacher's follow.

    Attributes:
        tokenizer: whose ids the teacher is given.
        template: prompts.template.
        chat: prompts.chat.
    """

    tokenizer: Any
    template: str | None
    chat: dict[str, Any] | None


@dataclass(frozen=True)
class TeacherPrompts:
    """What a teacher sees instead of each of the student's prompts.

    Attributes:
        ids: token ids by `Prompt.index`.
        texts: user messages by `Prompt.index`, for display and for finding quotations.
        key: configuration key of the template.
        digest: sha256 of the ids.
    """

    ids: Mapping[int, tuple[int, ...]]
    texts: Mapping[int, str]
    key: str
    digest: str

    def of(self, prompt: Prompt) -> Prompt:
        """A prompt with the ids that the teacher sees.

        Raises:
            UserError: a prompt that is not one of the training file's.
        """
        ids = self.ids.get(prompt.index)
        if ids is None:
            raise UserError(
                f"{self.key}: prompt {prompt.index} is not in prompts.path, so the teacher has no "
                "prompt of its own for it. Use the rollouts of these prompts."
            )
        return replace(prompt, ids=ids)

    def of_set(self, prompts: PromptSet) -> PromptSet:
        """The prompts with the ids that the teacher sees."""
        return replace(prompts, prompts=tuple(self.of(p) for p in prompts.prompts))


def make_teacher_prompts(
    source: Source,
    prompts: Sequence[Prompt],
    rendering: Rendering,
    view: str,
    *,
    longest: int | None,
    key: str = "teacher.prompt",
) -> TeacherPrompts:
    """Render the teacher's prompt of every row that the student is trained on.

    Args:
        source: the prompt file, or files.
        prompts: of the student, made from it.
        rendering: of the student's prompts.
        view: the teacher's user message, with {prompt}, {answer} or names of columns in it.
        longest: tokens that the teacher's context leaves for a prompt; None: any number.
        key: of `view`, for messages.

    Raises:
        UserError: a name that is no column, a row without a value for it, a prompt too long.
    """
    rows, path = {row.index: row for row in read_rows(source)}, source_name(source)
    column = prompt_column(path, list(rows.values()))
    _require_names(view, path, list(rows.values()), key)
    rendered = choose_rendering(rendering.tokenizer, rendering.chat)
    texts, messages, locations = [], {}, []
    for prompt in prompts:
        row = rows[prompt.index]
        turns = apply_template(conversation(row, column), rendering.template)
        message = fill_in(view, row, turns[-1]["content"], key)
        turns = [*turns[:-1], Message(turns[-1] | {"content": message})]
        texts.append(
            render(rendering.tokenizer, turns, rendered, rendering.chat or {}, row.location)
        )
        messages[prompt.index] = message
        locations.append(row.location)
    ids = [tuple(x) for x in encode_texts(rendering.tokenizer, texts, rendered)]
    for location, prompt_ids in zip(locations, ids, strict=True):
        if longest is not None and len(prompt_ids) > longest:
            raise UserError(
                f"{location}: with {key} the teacher's prompt has {len(prompt_ids)} tokens, and "
                f"its context leaves {longest} beside a completion. Shorten the row's text, lower "
                "rollout.max_new_tokens, or take a teacher of a longer context."
            )
    by_index = {p.index: x for p, x in zip(prompts, ids, strict=True)}
    digest = hashlib.sha256(json.dumps(sorted(by_index.items())).encode()).hexdigest()
    return TeacherPrompts(by_index, messages, key, digest)


def fill_in(view: str, row: Row, prompt: str, key: str) -> str:
    """The teacher's user message of a row.

    Raises:
        UserError: the row has no value for a name.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name == "prompt":
            return prompt
        given = row.values.get(name)
        if name == "answer" and not isinstance(given, str):
            given = answer_of(row)
        if isinstance(given, int | float) and not isinstance(given, bool):
            given = str(given)
        if not isinstance(given, str) or not given.strip():
            raise UserError(
                f"{row.location}: {key} needs text for {{{name}}}, and this row has none. Give "
                "every row one, or take the name out."
            )
        return given

    return PLACEHOLDER.sub(value, view)


def _require_names(view: str, path: str, rows: Sequence[Row], key: str) -> None:
    columns = sorted({name for row in rows for name in row.values})
    names = PLACEHOLDER.findall(view)
    unknown = [n for n in names if n not in ("prompt", "answer", *columns)]
    if unknown:
        raise UserError(
            f"{key}: {{{unknown[0]}}} is no column of {path}. It has {', '.join(columns)}; "
            "{prompt} is the student's own message and {answer} the row's answer."
        )
    if "prompt" not in names:
        raise UserError(
            f"{key}={view[:80]!r} does not say where the student's own message goes: write "
            "{prompt} in it."
        )
