"""Whose chat template prompts are rendered with."""

from __future__ import annotations

from typing import Any

from opd.config import Run
from opd.data.prompts import render
from opd.errors import UserError


def choose_template(cfg: Run, student: Any, teacher: Any | None) -> None:
    """Give the student's tokenizer the template that the configuration chooses.

    Args:
        cfg: the run.
        student: its tokenizer.
        teacher: its tokenizer; None for a teacher that is not in this process.

    Raises:
        UserError: only the teacher has a template and nothing is chosen, or none to take.
    """
    choice, chat = cfg.prompts.teacher_template, cfg.prompts.chat
    theirs = None if teacher is None else teacher.chat_template
    if choice:
        if theirs is None:
            raise UserError(
                "prompts.teacher_template=true, but the teacher "
                + (_why_unknown(cfg) if teacher is None else "has no chat template.")
                + " Set it to null."
            )
        student.chat_template = theirs
        return
    given = chat is None or "chat_template" in chat or student.chat_template is not None
    if choice is None and not given and theirs is not None:
        raise UserError(
            "The student's tokenizer has no chat template and the teacher's has one: without it "
            "the teacher answers far worse than it can. Choose one:\n"
            "  prompts.teacher_template=true   prompts in the teacher's template\n"
            "  prompts.teacher_template=false  plain text, as for a base model\n"
            "  prompts.chat=null               the same, said of the prompts themselves"
        )


CONVERSATIONS = (  # what prompts may be: a question, and one with all that can come before it
    [{"role": "user", "content": "What is 2 + 2?"}],
    [
        {"role": "system", "content": "Answer with a number."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "And 3 + 3?"},
    ],
)


def render_alike(tokenizer: Any, templates: tuple[Any, Any], chat: dict[str, Any]) -> bool:
    """Whether two templates make the same text of a prompt, whatever else they differ in.

    Sizes of one family often differ in the part for tools alone, which no prompt of a run reaches.

    Args:
        tokenizer: of the student.
        templates: of student and teacher.
        chat: prompts.chat.
    """
    student, teacher = templates
    return student == teacher or all(
        _text(tokenizer, student, turns, chat) == _text(tokenizer, teacher, turns, chat)
        for turns in CONVERSATIONS
    )


def _text(tokenizer: Any, template: Any, turns: Any, chat: dict[str, Any]) -> str | None:
    """A conversation as a template renders it; None if it refuses."""
    try:
        return render(tokenizer, turns, "chat", {"chat_template": template, **chat}, "")
    except UserError:
        return None


def _why_unknown(cfg: Run) -> str:
    if cfg.compares_text:
        return "has a tokenizer of its own (teacher.tokenizer) and renders prompts by it already."
    return "is not in this process."
