"""A teacher that is the student itself, from configuration to weights; where it makes no sense."""

from __future__ import annotations

from dataclasses import replace

from opd.config import Run, SelfTeacher
from opd.errors import UserError
from opd.models.lm import load_lm
from opd.models.self_weights import SelfWeights
from opd.setup.pair import Pair
from opd.setup.precision import resolve_precision
from opd.types import Dtype


def make_self_weights(cfg: Run, pair: Pair) -> SelfWeights | None:
    """The weights that teach where the teacher is the student itself; None for any other.

    Args:
        cfg: the run.
        pair: whose student has its master weights already, if it is to be averaged.

    Raises:
        UserError: the student's folder cannot be read any more.
    """
    spec, student = cfg.teacher, pair.student
    if not isinstance(spec, SelfTeacher):
        return None
    if spec.weights == "ema":
        return SelfWeights.averaging(student, spec.decay)
    if spec.weights == "live" or student.is_lora:
        return SelfWeights(student, spec.weights)
    precision = resolve_precision(cfg)
    dtype: Dtype = "bfloat16" if precision == "bf16_mixed" else precision
    copy = load_lm(cfg.student.model, dtype=dtype, device=str(student.device), key="student.model")
    for parameter in copy.model.parameters():
        parameter.requires_grad_(False)
    return SelfWeights(replace(copy, vocab=student.vocab), "frozen")


def require_ordinary_teacher(cfg: Run, command: str) -> None:
    """Refuse a teacher with a prompt of its own, or that is the student, where it makes no sense.

    Raises:
        UserError: naming the command.
    """
    spec = cfg.teacher
    if cfg.teachers:
        raise UserError(
            f"{command} needs one teacher, and this run has {len(cfg.teachers)}: "
            f"{', '.join(cfg.teachers)}. Write one of them as `teacher`."
        )
    if isinstance(spec, SelfTeacher):
        raise UserError(
            f"{command} needs a teacher that is another model, and this one is the student itself "
            "(teacher.from=student)."
        )
    if cfg.compares_text:
        raise UserError(
            f"{command} compares both models token by token, and teacher.tokenizer gives the "
            "teacher other tokens. It needs a teacher of the student's tokenizer."
        )
    if spec is not None and spec.prompt is not None:
        raise UserError(
            f"{command} compares both models on one prompt, and teacher.prompt gives the teacher "
            "another. Leave teacher.prompt out for this command."
        )
