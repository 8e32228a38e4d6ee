"""Python objects that a configuration names: `pkg.mod:name`, an entry point, or a given object.

Importing a module runs its code. A run.yaml is its author's own; the config.json of a run folder
may come from anybody, so what it names is imported only if the user names it again.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from opd.errors import UserError

PREFIX = "python:"  # of a grader or tracker that is named, beside the kinds
GIVEN = "given:"  # of an object that a Python program passed
_given: dict[str, Any] = {}


def remember(value: Any) -> str:
    """Keep an object for `load_object`; return the name that stands in the configuration."""
    kind = getattr(value, "__qualname__", type(value).__qualname__)
    name = f"{GIVEN}{kind}-{len(_given)}"
    _given[name] = value
    return name


def load_object(name: str, *, key: str, group: str) -> Any:
    """The object of that name.

    Args:
        name: `pkg.mod:attribute`, the name of an entry point, or what `remember` returned.
        key: that names it, for messages.
        group: of entry points, such as opd.teachers.

    Raises:
        UserError: there is none.
    """
    if name.startswith(GIVEN):
        if name not in _given:
            raise UserError(
                f"{key}={name} was an object of another Python process. Give it again with "
                "opd.Run(...), or name it as pkg.mod:object."
            )
        return _given[name]
    if ":" not in name:
        points = {point.name: point for point in entry_points(group=group)}
        if name not in points:
            known = ", ".join(sorted(points)) or "none is installed"
            raise UserError(
                f"{key}={name} is neither pkg.mod:object nor an entry point of {group} ({known})."
            )
        return points[name].load()
    module, _, attribute = name.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in attribute.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key}={name} cannot be imported: {error}. Give pkg.mod:object of a module on "
            "PYTHONPATH."
        ) from None
    return value


def named_code(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys of a configuration that name code to import, and what they name."""
    several = data.get("teachers")
    teachers = {"teacher": data.get("teacher")}
    teachers |= {f"teachers.{n}": t for n, t in (several or {}).items()}
    for key, teacher in teachers.items():
        if isinstance(teacher, Mapping) and isinstance(teacher.get("python"), str):
            yield f"{key}.python", teacher["python"]
    sections = {"prompts": data.get("prompts")}
    evals = data.get("eval")
    sections |= {f"eval.{i}": e for i, e in enumerate(evals if isinstance(evals, list) else [])}
    for name, section in sections.items():
        grader = section.get("grader") if isinstance(section, Mapping) else None
        if isinstance(grader, str) and grader.startswith(PREFIX):
            yield f"{name}.grader", grader
    sampler, alarms, trackers = (
        section.get(key) if isinstance(section := data.get(name), Mapping) else None
        for name, key in (("rollout", "python"), ("alarms", "python"), ("output", "trackers"))
    )
    if isinstance(sampler, str):
        yield "rollout.python", sampler
    if isinstance(alarms, list) and alarms:
        yield "alarms.python", f"[{', '.join(map(str, alarms))}]"
    if isinstance(trackers, list) and any(str(name).startswith(PREFIX) for name in trackers):
        yield "output.trackers", f"[{', '.join(map(str, trackers))}]"


def require_own_code(data: Mapping[str, Any], overrides: Sequence[str], *, where: str) -> None:
    """Refuse to import what a run folder's config.json names, unless the user names it, too.

    Args:
        data: the stored configuration.
        overrides: `key=value` of the command.
        where: the file, for the message.

    Raises:
        UserError: with the override that allows it.
    """
    for key, name in named_code(data):
        if GIVEN not in name and not any(item.startswith(f"{key}=") for item in overrides):
            raise UserError(
                f"{where} names Python code to import: {key}={name}. A run folder may come from "
                f"anybody. If you trust it, say so: add {key}={name} to the command."
            )
