"""Do the two models speak of the same tokens, read the same prompt, and end in the same place?

Nothing here runs a model. What is fatal for training is told with its fix; what is only worth
knowing is told too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from opd.models import tokenizers
from opd.types import Stop

Level = Literal["ok", "note", "warning", "failure"]
FIXES = {
    "ids": "choose a teacher of the same family (teacher.model)",
    "added": "choose a teacher with the same added tokens (teacher.model)",
    "merges": "choose a teacher with the same tokenizer (teacher.model)",
    "encoding": "choose a teacher with the same tokenizer (teacher.model)",
    "special": "choose a teacher with the same special tokens (teacher.model)",
    "head": "load the tokenizer that belongs to this model, or resize the model's head",
}


@dataclass(frozen=True)
class Point:
    """One thing that was looked at.

    Attributes:
        what: tokens, template, thinking, end, context, pad or same.
        level: ok, note, warning, or failure (training would go wrong).
        message: what was seen.
        fix: what to do about it; empty where nothing is to be done.
    """

    what: str
    level: Level
    message: str
    fix: str = ""


def tokens(
    student_tok: Any, teacher_tok: Any, *, student_vocab: int, teacher_vocab: int
) -> list[Point]:
    """Token ids, special tokens, padded heads, BOS, pad: see `opd.models.tokenizers.compare`."""
    found = tokenizers.compare(
        student_tok, teacher_tok, student_vocab=student_vocab, teacher_vocab=teacher_vocab
    )
    points = [
        Point("tokens", "failure" if f.fatal else "note", f.message, FIXES.get(f.what, ""))
        for f in found
        if f.what not in ("template", "eos")  # looked at on a real prompt, and by `ends`
    ]
    if not any(p.level == "failure" for p in points):
        count = tokenizers.vocab_size(student_tok)
        points.insert(0, Point("tokens", "ok", f"all {count} token ids mean the same to both"))
    return points


def template(student_ids: Sequence[int], teacher_ids: Sequence[int], tokenizer: Any) -> Point:
    """One real prompt, rendered by each model's own template: the first token that differs.

    Args:
        student_ids: the prompt as the run will use it.
        teacher_ids: the same row rendered with the teacher's tokenizer and template.
        tokenizer: spells the tokens.
    """
    if list(student_ids) == list(teacher_ids):
        return Point("template", "ok", "both render a prompt of this file as the same tokens")
    pairs = zip(student_ids, teacher_ids, strict=False)
    shorter = min(len(student_ids), len(teacher_ids))
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)

    def spelled(ids: Sequence[int]) -> str:
        if place >= len(ids):
            return "nothing (the prompt is over)"
        return f"{ids[place]} {tokenizer.convert_ids_to_tokens(int(ids[place]))!r}"

    return Point(
        "template",
        "warning",
        f"the templates differ from token {place} of a prompt on: {spelled(student_ids)} by the "
        f"student's, {spelled(teacher_ids)} by the teacher's; the teacher will read prompts "
        "written the student's way",
        "set prompts.chat.chat_template (or prompts.template) to what the teacher was trained on, "
        "if the student can follow it",
    )


def thinking(student_tok: Any, teacher_tok: Any, chat: dict[str, Any] | None) -> Point | None:
    """A template with a thinking switch that nobody has set."""
    has = [
        who
        for who, tok in (("student", student_tok), ("teacher", teacher_tok))
        if "enable_thinking" in str(tok.chat_template or "")
    ]
    if not has or chat is None:
        return None
    if "enable_thinking" in chat:
        value = chat["enable_thinking"]
        return Point("thinking", "ok", f"prompts.chat.enable_thinking={value} for both models")
    return Point(
        "thinking",
        "warning",
        f"the template of the {' and the '.join(has)} has a thinking switch that is left at its "
        "default",
        "set prompts.chat: {enable_thinking: false} or true, as the teacher is to be used",
    )


def ends(
    student_end: frozenset[int], teacher_end: frozenset[int], choice: Stop | None, tokenizer: Any
) -> Point:
    """Where completions end."""
    if student_end == teacher_end:
        return Point("end", "ok", f"both end a completion with {_spelled(tokenizer, student_end)}")
    seen = (
        f"the student ends with {_spelled(tokenizer, student_end)}, the teacher with "
        f"{_spelled(tokenizer, teacher_end)}"
    )
    if choice is None:
        return Point("end", "failure", seen, "set rollout.stop to student, teacher or union")
    return Point("end", "note", f"{seen}; rollout.stop={choice} decides")


def _spelled(tokenizer: Any, ids: frozenset[int]) -> str:
    return ", ".join(f"{i} {tokenizer.convert_ids_to_tokens(i)!r}" for i in sorted(ids))


def context(who: str, length: int | None, prompt: int, new_tokens: int) -> Point:
    """Whether the longest prompt and a whole completion fit into a model."""
    need = prompt + new_tokens
    if length is None:
        return Point("context", "note", f"the {who} does not say how much it can read")
    if need > length:
        return Point(
            "context",
            "failure",
            f"the {who} reads {length} tokens; prompt and completion need up to {need}",
            f"lower rollout.max_new_tokens to {max(1, length - prompt)}, or prompts.max_tokens",
        )
    return Point("context", "ok", f"the {who} reads {length} tokens; at most {need} are needed")


def different(equal: bool) -> Point:
    """A teacher that is the student has nothing to teach."""
    if equal:
        return Point(
            "same",
            "failure",
            "teacher and student have the same weights: there is nothing to learn",
            "set teacher.model to another model",
        )
    return Point("same", "ok", "teacher and student are different models")
