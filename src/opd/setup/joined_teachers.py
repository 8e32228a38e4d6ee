"""Several teachers as one that knows whose each prompt is."""

from __future__ import annotations

from opd.core.objective import Objective
from opd.data.prompts import PromptSet
from opd.errors import UserError
from opd.models.lm import LM
from opd.setup.routing import routes_by_label
from opd.teachers.routed import LogitsOf, MixedTeacher, RoutedTeacher, mixed_logits
from opd.types import Kind, Teacher


def join_teachers(
    teachers: dict[str, Teacher], prompts: PromptSet, objective: Objective, *, parallel: bool
) -> RoutedTeacher:
    """The teachers as one that knows whose each prompt is.

    Raises:
        UserError: a teacher of a mixture that gives no normalised log-probs where they are needed.
    """
    joined: dict[str, Teacher] = {}
    for label, route in routes_by_label(prompts).items():
        if len(route.parts) == 1:
            joined[label] = teachers[label]
            continue
        mixture = MixedTeacher(label, [(w, teachers[name]) for name, w in route.parts])
        needed = {Kind.SAMPLED} | ({Kind.SUPPORT} if objective.want.support else set())
        if missing := needed - mixture.kinds:
            raise UserError(
                f"The mixture {label} needs normalised log-probs ({', '.join(sorted(missing))}) "
                "from each of its teachers, and one of them gives none. Use teachers in this "
                "process or behind `opd serve-teacher`, or one teacher per prompt."
            )
        joined[label] = mixture
    return RoutedTeacher(joined, prompts.routes, parallel=parallel)


def join_logits(
    heads: dict[str, tuple[LM | None, LogitsOf | None]], prompts: PromptSet
) -> dict[str, LogitsOf | None]:
    """Hidden states to logits for every route; None where a teacher is not in this process.

    Args:
        heads: model and head of every teacher.
        prompts: with their routes.
    """
    logits: dict[str, LogitsOf | None] = {}
    for label, route in routes_by_label(prompts).items():
        parts: list[tuple[float, int, LogitsOf]] = []
        for name, weight in route.parts:
            lm, head = heads[name]
            if lm is not None and head is not None:
                parts.append((weight, int(lm.config.hidden_size), head))
        if len(parts) < len(route.parts):
            logits[label] = None
        else:
            logits[label] = parts[0][2] if len(parts) == 1 else mixed_logits(parts)
    return logits
