"""Whether two models share tokens, prompt format and end tokens.

Nothing here runs a model. Every check returns what was seen; one that would make training go wrong
comes with its fix.
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
class Finding:
    """The result of one check.

    Attributes:
        topic: tokens, template, thinking, end, context, precision, same, or reach (of a server).
        level: ok, note, warning, or failure (training would go wrong).
        message: what was seen.
        fix: what to change; empty where nothing is to be done.
    """

    topic: str
    level: Level
    message: str
    fix: str = ""


def check_tokens(
    student_tok: Any, teacher_tok: Any, *, student_vocab: int, teacher_vocab: int
) -> list[Finding]:
    """Token ids, special tokens, padded heads, BOS, pad: see `opd.models.tokenizers.compare`."""
    differences = tokenizers.compare(
        student_tok, teacher_tok, student_vocab=student_vocab, teacher_vocab=teacher_vocab
    )
    findings = [
        Finding("tokens", "failure" if d.fatal else "note", d.message, FIXES.get(d.kind, ""))
        for d in differences
        if d.kind not in ("template", "eos")  # see `check_template` and `check_end_tokens`
    ]
    if not any(f.level == "failure" for f in findings):
        count = tokenizers.vocab_size(student_tok)
        findings.insert(0, Finding("tokens", "ok", f"all {count} token ids mean the same to both"))
    return findings


def check_template(
    student_ids: Sequence[int], teacher_ids: Sequence[int], tokenizer: Any
) -> Finding:
    """Compare one real prompt as each model's own template renders it.

    Args:
        student_ids: the prompt as the run will use it.
        teacher_ids: the same row rendered with the teacher's tokenizer and template.
        tokenizer: converts ids to tokens for the message.
    """
    if list(student_ids) == list(teacher_ids):
        return Finding("template", "ok", "both render a prompt of this file as the same tokens")
    pairs = zip(student_ids, teacher_ids, strict=False)
    shorter = min(len(student_ids), len(teacher_ids))
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)

    def show(ids: Sequence[int]) -> str:
        return _token(tokenizer, ids[index]) if index < len(ids) else "nothing (prompt ended)"

    return Finding(
        "template",
        "warning",
        f"the templates differ from token {index} of a prompt on: {show(student_ids)} by the "
        f"student's, {show(teacher_ids)} by the teacher's; the teacher will score prompts in the "
        "student's format",
        "set prompts.chat.chat_template (or prompts.template) to what the teacher was trained on, "
        "if the student can follow it",
    )


def check_thinking(
    student_tok: Any, teacher_tok: Any, chat: dict[str, Any] | None
) -> Finding | None:
    """Whether a thinking switch of a chat template is left at its default; None without one."""
    has = [
        role
        for role, tok in (("student", student_tok), ("teacher", teacher_tok))
        if "enable_thinking" in str(tok.chat_template or "")
    ]
    if not has or chat is None:
        return None
    if "enable_thinking" in chat:
        value = chat["enable_thinking"]
        return Finding("thinking", "ok", f"prompts.chat.enable_thinking={value} for both models")
    return Finding(
        "thinking",
        "warning",
        f"the template of the {' and the '.join(has)} has a thinking switch that is left at its "
        "default",
        "set prompts.chat: {enable_thinking: false} or true, as the teacher is to be used",
    )


def check_end_tokens(
    student_end: frozenset[int], teacher_end: frozenset[int], choice: Stop | None, tokenizer: Any
) -> Finding:
    """Whether both models end a completion with the same tokens, or rollout.stop chooses."""
    student, teacher = (
        ", ".join(_token(tokenizer, i) for i in sorted(ids)) for ids in (student_end, teacher_end)
    )
    if student_end == teacher_end:
        return Finding("end", "ok", f"both end a completion with {student}")
    message = f"the student ends with {student}, the teacher with {teacher}"
    if choice is None:
        return Finding("end", "failure", message, "set rollout.stop to student, teacher or union")
    return Finding("end", "note", f"{message}; rollout.stop={choice} decides")


def _token(tokenizer: Any, token_id: int) -> str:
    return f"{token_id} {tokenizer.convert_ids_to_tokens(int(token_id))!r}"


def check_context(role: str, length: int | None, prompt: int, new_tokens: int) -> Finding:
    """Whether the longest prompt and a whole completion fit into a model's context.

    Args:
        role: student or teacher.
        length: the model's context in tokens; None if unknown.
        prompt: tokens of the longest prompt.
        new_tokens: rollout.max_new_tokens.
    """
    need = prompt + new_tokens
    if length is None:
        return Finding("context", "note", f"the context length of the {role} is unknown")
    if need > length:
        return Finding(
            "context",
            "failure",
            f"the {role}'s context is {length} tokens; prompt and completion need up to {need}",
            f"lower rollout.max_new_tokens to {max(1, length - prompt)}, or prompts.max_tokens",
        )
    return Finding("context", "ok", f"the {role}'s context is {length} tokens; {need} are needed")


def check_distinct(equal: bool) -> Finding:
    """Whether teacher and student are different models: the student itself teaches nothing."""
    if equal:
        return Finding(
            "same",
            "failure",
            "teacher and student have the same weights: there is nothing to learn",
            "set teacher.model to another model",
        )
    return Finding("same", "ok", "teacher and student are different models")
