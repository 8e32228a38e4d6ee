"""Which of several teachers scores which prompts, and how many prompts each file gives a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from opd.config import EvalSet, Run
from opd.core.loss_settings import LossSettings
from opd.data.order import Share
from opd.data.prompts import PromptSet
from opd.data.readers import read_rows
from opd.data.routes import COLUMN, Route, make_route, route_rows
from opd.errors import UserError


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Messages about `teacher.KEY` become messages about `teachers.NAME.KEY`."""
    try:
        yield
    except UserError as error:
        text = re.sub(r"\bteacher\.(?=[a-z_]+\b)", f"teachers.{name}.", str(error))
        raise UserError(
            text if f"teachers.{name}." in text else f"teachers.{name}: {text}"
        ) from None


def route_prompts(cfg: Run, prompts: PromptSet) -> PromptSet:
    """The prompts with the share of each file and the teacher of each prompt.

    Raises:
        UserError: a teacher that is not there, a row without one, a teacher without prompts.
    """
    shares, begin = [], 0
    routes: dict[int, Route] = {}
    of_index = {p.index: position for position, p in enumerate(prompts.prompts)}
    for i, file in enumerate(cfg.prompts.files):
        rows = [replace(r, index=r.index + begin) for r in read_rows(file.path)]
        begin += len(rows)
        used = [of_index[r.index] for r in rows if r.index in of_index]
        if not used:
            raise UserError(
                f"prompts.files.{i}.path={file.path}: no prompt of this file is short enough. "
                "Raise prompts.max_tokens, or leave the file out."
            )
        shares.append(Share(tuple(used), file.weight))
        if cfg.teachers:
            where = f"prompts.files.{i}.path={file.path}"
            routes |= route_rows(rows, file.teacher, list(cfg.teachers), where)
    if cfg.teachers and not cfg.prompts.files:
        rows = read_rows(cfg.prompts.source)
        routes = route_rows(rows, None, list(cfg.teachers), cfg.prompts.name)
    kept = {index: route for index, route in routes.items() if index in of_index}
    _require_prompts_for_all(cfg, kept)
    return replace(prompts, shares=tuple(shares) if len(shares) > 1 else (), routes=kept)


def evaluated_teachers(cfg: Run, spec: EvalSet, index: int, prompts: PromptSet) -> tuple[str, ...]:
    """Of several teachers, whose prompts those of a held-out set are; empty where none is named.

    Args:
        cfg: the run.
        spec: the set.
        index: of it in `eval`.
        prompts: of it.

    Raises:
        UserError: a name that is no teacher's.
    """
    if not cfg.teachers:
        return ()
    wanted = {prompt.index for prompt in prompts.prompts}
    labels = {}
    for row in read_rows(spec.path):
        if row.index in wanted:
            own = row.values.get(COLUMN)
            where = f"eval.{index}.teacher" if own is None else row.location
            named = spec.teacher if own is None else own
            labels[row.index] = make_route(named, cfg.teachers, where).label if named else ""
    teachers = tuple(labels[prompt.index] for prompt in prompts.prompts)
    return teachers if any(teachers) else ()


def _require_prompts_for_all(cfg: Run, routes: dict[int, Route]) -> None:
    used = {name for route in routes.values() for name, _ in route.parts}
    unused = [name for name in cfg.teachers if name not in used]
    if unused:
        raise UserError(
            f"teachers.{unused[0]} has no prompt to score. Name it in prompts.files.N.teacher or "
            "in a column `teacher`, or leave it out."
        )


def prompts_of(prompts: PromptSet, name: str) -> PromptSet:
    """The prompts that one of the teachers scores, alone or with others."""
    own = tuple(
        p for p in prompts.prompts if name in [part for part, _ in prompts.routes[p.index].parts]
    )
    return replace(prompts, prompts=own, shares=(), routes={})


def routes_by_label(prompts: PromptSet) -> dict[str, Route]:
    """Every route of the prompts, in order of first appearance."""
    return {route.label: route for p in prompts.prompts if (route := prompts.routes[p.index])}


def require_mixable(prompts: PromptSet, objective: LossSettings, prunes: bool) -> None:
    """Refuse a loss that needs a mixture's own top tokens, which its teachers' do not give.

    Raises:
        UserError: naming the mixture and the losses that are possible.
    """
    mixed = [label for label, route in routes_by_label(prompts).items() if len(route.parts) > 1]
    if mixed and (objective.want.topk or prunes):
        raise UserError(
            f"The most probable tokens of the mixture {mixed[0]} are not known from those of its "
            "teachers. Use loss.support=student_topk, sampled or full, without "
            "loss.terms.entropy_forward_kl and horizon.prune; or one teacher per prompt."
        )


def same_for_all(values: dict[str, Any], describe: Callable[[Any], str], fix: str) -> Any:
    """The value that all teachers agree on.

    Raises:
        UserError: two of them differ; both are described.
    """
    (first, value), *others = values.items()
    for name, other in others:
        if other != value:
            raise UserError(
                f"teachers {first} and {name} differ: {describe(value)} and {describe(other)}. "
                f"{fix}"
            )
    return value
