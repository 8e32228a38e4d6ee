"""Which files and folders a configuration reads, and which it writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Keys whose value is a path to read. `N` stands for every element of a list, `*` for every name.
INPUT_KEYS = (
    "student.model",
    "teacher.model",
    "teachers.*.model",
    "prompts.path",
    "prompts.files.N.path",
    "eval.N.path",
    "rollout.path",
    "loss.terms.reference",
    "loss.terms.sft_path",
    "coldstart.path",
    "coldstart.prompts",
    "check.origin",
    "select.against.N",
)
OUTPUT_KEYS = (
    "output.dir",
    "select.output",
    "teacher.cache.dir",
    "teachers.*.cache.dir",
    "rollout.sync_dir",
)


def input_paths(config: Mapping[str, Any]) -> dict[str, Path]:
    """The files and folders that a configuration reads, by key; hub names are left out.

    Args:
        config: plain values, as in run.yaml or a run's config.json.
    """
    return {k: p for k, p in _paths(config, INPUT_KEYS).items() if _exists(p)}


def output_paths(config: Mapping[str, Any]) -> dict[str, Path]:
    """The files and folders that commands write for a configuration, by key."""
    return _paths(config, OUTPUT_KEYS)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no path at all; who reads it says so
        return False


def _paths(config: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Path]:
    paths = {}
    for key in keys:
        for name, value in _values(config, key.split("."), ""):
            if isinstance(value, str) and value and "\0" not in value:
                paths[name] = Path(value).expanduser()
    return paths


def _values(node: Any, names: list[str], prefix: str) -> Iterator[tuple[str, Any]]:
    if not names:
        yield prefix, node
        return
    name, rest = names[0], names[1:]
    if name == "N":
        children = [(str(i), v) for i, v in enumerate(node)] if isinstance(node, list) else []
    elif name == "*":
        children = list(node.items()) if isinstance(node, Mapping) else []
    else:
        children = [(name, node.get(name))] if isinstance(node, Mapping) else []
    for key, child in children:
        yield from _values(child, rest, f"{prefix}.{key}" if prefix else key)
