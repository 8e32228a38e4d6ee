"""A teacher of another tokenizer, from configuration to the layer that compares text."""

from __future__ import annotations

from typing import Any

from opd.data.teacher_prompts import TeacherPrompts
from opd.models.lm import LM
from opd.teachers.translate import TranslatedTeacher, Translator, aligned_fraction
from opd.types import Teacher

SHOWN_TEXTS = 64  # rows whose text `opd check` aligns


def translated(
    teacher: Teacher,
    student: LM,
    tokenizer: Any,
    own: Any,
    prompts: TeacherPrompts,
    pair_stop: frozenset[int],
) -> TranslatedTeacher:
    """A teacher behind the comparison of text.

    Args:
        teacher: scores its own tokens.
        student: whose ids are compared.
        tokenizer: the student's.
        own: the teacher's.
        prompts: what it sees.
        pair_stop: ids that end a rollout.
    """
    translator = Translator(tokenizer, own, pair_stop, vocab=student.vocab)
    lm = getattr(teacher, "lm", None)
    context = lm.context_length if isinstance(lm, LM) else None
    return TranslatedTeacher(teacher, translator, prompts, context=context)


def describe_alignment(translator: Translator, texts: list[str]) -> str:
    """What share of the student's tokens of some texts the two tokenizers have in common.

    Raises:
        UserError: the teacher's tokens do not spell a text.
    """
    readings = []
    for text in texts[:SHOWN_TEXTS]:
        ids = translator.student.tokenizer.encode(text, add_special_tokens=False)
        readings.append((len(ids), translator.read(ids, ended=False)))
    alone, nowhere = aligned_fraction(readings)
    common = (translator.same_token >= 0).mean()
    return (
        f"of the student's tokens of {len(readings)} prompts {alone:.1%} are one token for the "
        f"teacher too, and {nowhere:.1%} align nowhere; {common:.1%} of the student's vocabulary "
        "is in the teacher's"
    )
