"""run.yaml in, a validated `Run` out; every mistake is reported with the key that fixes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from opd.config.mistakes import explain
from opd.config.no_effect import require_effect
from opd.config.python_objects import require_own_code
from opd.config.reference import takes_text_alone
from opd.config.removed import removed_key_errors, upgrade
from opd.config.schema import Run
from opd.config.yaml_file import parse_value, read_yaml
from opd.errors import UserError

QUOTES, NOTHING = ("'", '"', "|", ">", "!"), ("", "~", "null")  # of YAML, kept for text


def load(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read run.yaml or a run's config.json, apply `key=value` overrides, validate once.

    Raises:
        UserError: naming the key, the value seen, what is allowed, and the nearest known key.
    """
    data = read(path)
    stored = Path(path).suffix == ".json"  # the config.json of a run folder
    if stored:
        data = upgrade(data, where=str(path))
        require_own_code(data, overrides, where=str(path))
    data = overridden(data, overrides)
    if isinstance(data.get("teacher"), list):
        raise UserError(
            f"{path}: teacher is a list of {len(data['teacher'])}. A run learns from one teacher; "
            f"`opd check {path}` ranks several."
        )
    run = validate(data, where=str(path))
    if not stored:
        require_effect(run, where=str(path))
    return run


def load_each(path: str | Path, overrides: Sequence[str] = ()) -> list[Run]:
    """As `load`, where `teacher` may be a list: one configuration per teacher.

    Raises:
        UserError: as `load`; an empty list.
    """
    data = overridden(read(path), overrides)
    teachers = data.get("teacher")
    if not isinstance(teachers, list):
        return [load(path, overrides)]
    if not teachers:
        raise UserError(f"{path}: teacher is an empty list; give at least one.")
    runs = []
    for i, each in enumerate(teachers):
        where = f"{path}, teacher {i}"
        runs.append(validate(data | {"teacher": each}, where=where))
        require_effect(runs[-1], where=where)
    return runs


def read(path: str | Path) -> dict[str, Any]:
    """The YAML's content, not yet validated.

    Raises:
        UserError: no such file, or not a YAML mapping.
    """
    return read_yaml(Path(path))


def parse(data: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "config") -> Run:
    """Validate a plain mapping (the YAML's content) with overrides applied; see `load`."""
    return validate(overridden(data, overrides), where=where)


def parse_stored(
    stored: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "config.json"
) -> Run:
    """As `parse`, for a configuration that this or an earlier version has stored in a run folder.

    Raises:
        UserError: as `load`; a removed key has a value that this version cannot reproduce.
    """
    return parse(upgrade(stored, where=where), overrides, where=where)


def overridden(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A private copy, plain types only, with `key=value` overrides applied.

    Raises:
        UserError: an override that is not key=value, or whose key leads through a value.
    """
    data = json.loads(json.dumps(data, default=str))
    for item in overrides:
        key, eq, value = item.partition("=")
        if not eq or not all(key.split(".")):
            raise UserError(f"Override {item!r} is not key=value, e.g. train.steps=50.")
        try:
            _assign(data, key.split("."), _parse_override(key, value), item)
        except ValueError as error:
            raise UserError(f"Override {item!r}: {value!r} is not a YAML value: {error}") from None
    return data


def _parse_override(key: str, text: str) -> Any:
    """The value of an override; of a key that is text alone the text itself, quoted or not.

    To YAML `teacher.prompt={prompt}` is a mapping, `{prompt} {answer}` an error, `output.dir=7` a
    number, and what follows ` #` a comment.
    """
    plain = text.strip()
    if not takes_text_alone(key) or plain[:1] in QUOTES or plain.lower() in NOTHING:
        return parse_value(text)
    return plain


def validate(data: dict[str, Any], *, where: str) -> Run:
    """A plain mapping as a `Run`.

    Raises:
        UserError: naming every wrong or removed key.
    """
    data, errors = removed_key_errors(data)
    try:
        run = Run.model_validate(data)
    except ValidationError as error:
        errors += [line for e in error.errors() if (line := explain(e))]
    if errors:
        raise UserError(f"{where}:\n" + "\n".join(errors))
    return run


def dump(run: Run) -> dict[str, Any]:
    """The resolved configuration as plain JSON types."""
    return run.model_dump(mode="json")


def _assign(data: dict[str, Any], keys: list[str], value: Any, item: str) -> None:
    node: Any = data
    for key, after in pairwise(keys):
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise UserError(f"Override {item!r}: no element {key!r} in a list of {len(node)}.")
            node = node[int(key)]
            continue
        if node.get(key) is None:
            if after.isdigit():
                raise UserError(
                    f"Override {item!r}: {key!r} is empty, so it has no element {after}."
                )
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict | list):
            raise UserError(f"Override {item!r}: {key!r} is a value, not a section.")
    if isinstance(node, list):
        if not keys[-1].isdigit() or int(keys[-1]) >= len(node):
            raise UserError(f"Override {item!r}: no element {keys[-1]!r} in a list of {len(node)}.")
        node[int(keys[-1])] = value
    else:
        node[keys[-1]] = value
