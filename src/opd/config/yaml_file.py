"""YAML as plain values: no key twice, no text that grows without limit."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from opd.errors import UserError

MAX_BYTES = 2**20
MAX_NODES = 100_000  # after aliases are replaced by what they stand for
MAX_DEPTH = 64


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See `yaml.SafeLoader`."""
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if isinstance(key, dict | list):
                raise ValueError(f"line {line}: a key must be text, found {key!r}")
            if key in lines:
                raise ValueError(f"{key!r} is there twice, in lines {lines[key]} and {line}")
            lines[key] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of run.yaml, not yet validated.

    Raises:
        UserError: no such file, one that cannot be read, or not a YAML mapping.
    """
    _require_file(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES} bytes: it is no run.yaml.")
        data = parse_value(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a mapping of sections, found {type(data).__name__}.")
    return data


def parse_value(text: str) -> Any:
    """Parse YAML.

    Raises:
        ValueError: it is none, has a key twice, or is nested or repeated beyond reason.
    """
    try:
        data = yaml.load(text, Loader=_Loader)
        _require_size(data)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except (RecursionError, OverflowError) as error:
        raise ValueError(f"it is nested too deeply or holds too large a number ({error})") from None
    return data


def _require_file(path: Path) -> None:
    try:
        if path.is_file():
            return
        if path.is_dir():
            raise UserError(f"{path} is a folder. {_advice_for_folder(path)}")
        if path.exists():
            raise UserError(f"{path} is no ordinary file; give a run.yaml.")
        near = _similar(path)
    except (OSError, ValueError) as error:
        raise UserError(f"No such file: {str(path)[:80]!r} ({error}).") from None
    if near is not None:
        raise UserError(f"No such file: {path}. Did you mean {near}?")
    raise UserError(f"No such file: {path}. `opd init {path}` writes a commented one.")


def _advice_for_folder(path: Path) -> str:
    if (path / "config.json").is_file() and (path / "env.json").is_file():
        return f"For the run in it give its configuration: {path / 'config.json'}"
    inside = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
    return f"Give a file, such as {inside[0]}." if inside else "Give a run.yaml."


def _similar(path: Path) -> Path | None:
    names = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    return path.with_name(near[0]) if near else None


def _require_size(data: Any) -> None:
    """Aliases of aliases make a short text stand for billions of values."""
    nodes, stack = 0, [(data, 0)]
    while stack:
        value, depth = stack.pop()
        nodes += 1
        if nodes > MAX_NODES or depth > MAX_DEPTH:
            raise ValueError("it stands for too many values, or is nested too deeply")
        if isinstance(value, dict):
            stack += [(v, depth + 1) for v in value.values()]
        elif isinstance(value, list | tuple | set):
            stack += [(v, depth + 1) for v in value]
