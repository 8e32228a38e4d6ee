"""What makes no sense for a teacher that is the student, sees more, or is one of several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opd.config.models import LocalTeacher, PythonTeacher, SelfTeacher, ServerTeacher

if TYPE_CHECKING:
    from opd.config.schema import Run


def require_possible(run: Run) -> None:
    """Refuse what a run of several teachers cannot do.

    Raises:
        ValueError: naming the keys.
    """
    if run.teacher is not None:
        raise ValueError("teacher and teachers are the same thing: set one of them")
    for key, value in (("coldstart", run.coldstart), ("recipe", run.recipe)):
        if value is not None:
            raise ValueError(
                f"{key} needs one teacher that all prompts are compared with, and teachers has "
                f"{len(run.teachers)}. Set {key}=null"
            )
    averaged = [
        name
        for name, spec in run.teachers.items()
        if isinstance(spec, SelfTeacher) and spec.weights == "ema"
    ]
    if len(averaged) > 1:
        raise ValueError(
            f"teachers {', '.join(averaged)} are all averages of the student; a run keeps one"
        )
    for name, spec in run.teachers.items():
        require_teacher_possible(run, spec, f"teachers.{name}")


def require_teacher_possible(
    run: Run, teacher: LocalTeacher | ServerTeacher | SelfTeacher | PythonTeacher, key: str
) -> None:
    """Refuse what makes no sense for a teacher that sees more, or is the student itself.

    Args:
        run: the run.
        teacher: its teacher, or one of them.
        key: of it.

    Raises:
        ValueError: naming the keys.
    """
    own = isinstance(teacher, SelfTeacher)
    if own and teacher.prompt is None and run.loss.terms.outcome_weight == 0:
        raise ValueError(
            f"{key}.from=student without {key}.prompt knows nothing that the student does not. "
            f"Set {key}.prompt, such as '{{prompt}}\\n\\nReference: {{answer}}', or train on the "
            "outcome too (loss.terms.outcome_weight)"
        )
    if own and run.student.shard == "fsdp2":
        raise ValueError(
            f"{key}.from=student scores with the student's own weights, and student.shard=fsdp2 "
            "gives each process a part of them. Set student.shard=none, or name the model as "
            f"{key}.model"
        )
    models = LocalTeacher | ServerTeacher
    text = isinstance(teacher, models) and teacher.tokenizer is not None
    if text and run.horizon is not None and run.horizon.prune is not None:
        raise ValueError(
            f"horizon.prune compares top tokens, which {key}.tokenizer makes another vocabulary's. "
            "Set horizon.prune=null"
        )
    if text and teacher.cache is not None:
        raise ValueError(
            f"{key}.cache keeps scores of the student's tokens, and {key}.tokenizer gives scores "
            "of the teacher's. Leave the cache out"
        )
    if not own and teacher.prompt is None and not text:
        return
    reason = f"{key}.from=student" if own else f"{key}.tokenizer" if text else f"{key}.prompt"
    if run.coldstart is not None:
        raise ValueError(
            "coldstart imitates completions of the teacher's, which with "
            f"{reason} would answer another prompt than the student's. Set coldstart=null"
        )
    if run.recipe is not None:
        raise ValueError(
            "recipe=auto measures both models on one prompt and may begin with a cold start; with "
            f"{reason} neither makes sense. Set recipe=null"
        )
