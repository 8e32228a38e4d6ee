"""docs/config.md: every key with its default and its description, from the fields themselves."""

from __future__ import annotations

import json
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from opd.config.schema import Run


def known_keys(section: type[BaseModel] = Run, prefix: str = "") -> dict[str, FieldInfo]:
    """Every dotted key of the configuration with its field, groups of keys included."""
    keys: dict[str, FieldInfo] = {}
    for attribute, field in section.model_fields.items():
        name = field.alias or attribute
        keys[prefix + name] = field
        for inner in _sections_in(field.annotation):
            inner_keys = known_keys(inner, f"{prefix}{name}.")
            keys |= {k: f for k, f in inner_keys.items() if k not in keys}
    return keys


def takes_text_alone(key: str) -> bool:
    """Whether the value of a dotted key is text, or text or nothing.

    Args:
        key: as on the command line, with numbers of elements and names of teachers.
    """
    parts = [part for part in key.split(".") if not part.isdigit()]
    if parts[0] == "teachers" and len(parts) > 2:
        parts = ["teacher", *parts[2:]]
    field = known_keys().get(".".join(parts))
    if field is None:
        return False
    return {field.annotation, *get_args(field.annotation)} - {NoneType, str | None} == {str}


def settable_keys() -> dict[str, FieldInfo]:
    """The keys that docs/config.md lists: without groups that are never null.

    A named teacher's keys are those of `teacher`.
    """
    return {
        k: f
        for k, f in known_keys().items()
        if not _is_section(f.annotation) and not k.startswith("teachers.")
    }


def reference() -> str:
    """The text of docs/config.md."""
    lines = [
        "# Every key of run.yaml",
        "",
        "Made from the configuration's fields by `python -m opd.config`; a test keeps it equal.",
        "Override any key on the command line: `opd train run.yaml optim.lr=1e-5 eval.0.n=8`.",
        "",
        "| key | default | what it is |",
        "|---|---|---|",
    ]
    for key, field in settable_keys().items():
        default = "required" if field.is_required() else f"`{json.dumps(field.get_default())}`"
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        if choices := _choices(field.annotation):
            named = ", ".join([*(f"`{choice}`" for choice in choices), *_others(field.annotation)])
            description = f"{description} Allowed: {named}."
        lines.append(f"| `{key}` | {default} | {description} |")
    return "\n".join(lines) + "\n"


def _choices(annotation: Any) -> list[str]:
    """The words that a key may be, in order; none for a key that is no enumeration."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    inner = [choice for arg in get_args(annotation) for choice in _choices(arg)]
    return list(dict.fromkeys(inner))


def _others(annotation: Any) -> list[str]:
    """What a key may be beside words of a list."""
    if get_origin(annotation) is Literal:
        return []
    known = {int: "a whole number", str: "`python:` and a name"}
    inner = [other for arg in get_args(annotation) for other in _others(arg)]
    return [known[annotation]] if annotation in (int, str) else list(dict.fromkeys(inner))


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if _is_section(annotation):
        return [annotation]
    return [s for arg in getattr(annotation, "__args__", ()) for s in _sections_in(arg)]
