"""Whether a folder may become, continue or replace a run, and which configurations are equal."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from opd.config import Run, input_paths, upgrade
from opd.errors import UserError
from opd.run.disk import TMP, encode_json
from opd.run.jsonl import flatten
from opd.run.layout import CONFIG, ENV, FOLDERS, LOCK
from opd.run.outputs import require_folders_apart, require_inputs_outside
from opd.run.own_files import check_kinds

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# What may change on resume: where and how often the run writes, its number of steps, its evaluation
# sets, how the student is sharded. Every other key affects the numbers.
FREE_KEYS = ("output", "train.steps", "eval", "alarms", "check", "student.shard")


def config_hash(config: Mapping[str, Any]) -> str:
    """The sha256 of everything in a configuration that affects the numbers.

    Keys at their default are left out, so that a key of a later version changes nothing.
    """
    values = flatten(_with_defaults(config, False))
    fixed = {k: v for k, v in values.items() if not _is_free(k)}
    return hashlib.sha256(encode_json(fixed)).hexdigest()


def _with_defaults(config: Mapping[str, Any], defaults: bool) -> dict[str, Any]:
    """A configuration with all defaults or none; one of another schema is returned as it is."""
    try:
        run = Run.model_validate(config)
    except ValidationError:
        return dict(config)
    return run.model_dump(mode="json", exclude_defaults=not defaults)


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_KEYS)


def check_name(path: Path) -> None:
    """Raise UserError unless the folder's own name is plain."""
    if path.name not in ("", ".."):
        require_safe_name(path.name, "run folder", "output.dir")


def require_safe_name(name: str, kind: str, key: str) -> None:
    """Raise UserError for a name that could leave its folder or mislead.

    Args:
        name: of a file or folder.
        kind: what it names, for the message.
        key: the configuration key to change.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not a safe name for a {kind}: use letters, digits, '.', '_' and '-', "
            f"starting with a letter or digit, at most 128. Set {key}."
        )


def check_folder(path: Path, config: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Raise UserError unless a run of `config` may be written at `path`; change nothing."""
    require_inputs_outside(path, input_paths(config))
    require_folders_apart(config)
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to nothing; output.dir must name a folder.")
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file; output.dir must name a folder.")
    check_kinds(path)
    content = [p for p in path.iterdir() if p.name != LOCK and not TMP.search(p.name)]
    if all(p.name == ENV or (p.name in FOLDERS and _is_empty(p)) for p in content):
        return  # empty, or left by a start that was interrupted before it wrote anything of value
    if not resume and not overwrite:
        raise UserError(
            f"{path} already has content. Continue that run with --resume, start over with "
            "--overwrite, which deletes that run, or set output.dir to another folder."
        )
    if not _is_run_folder(path):
        flag = "--resume" if resume else "--overwrite"
        raise UserError(
            f"{path} does not look like a run folder ({CONFIG} and {ENV} of opd are not both "
            f"there), so {flag} leaves it alone. Set output.dir to another folder."
        )
    if resume:
        _check_config(path, config)


def _is_run_folder(path: Path) -> bool:
    """A model folder has a config.json too; only a run has our env.json beside it."""
    try:
        env = json.loads((path / ENV).read_text("utf-8"))
        config = json.loads((path / CONFIG).read_text("utf-8"))
        return isinstance(config, dict) and "opd" in env["versions"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def stored_and_new(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration that a run folder holds and another one, both with all defaults."""
    stored = json.loads((path / CONFIG).read_text("utf-8"))
    before = _with_defaults(upgrade(stored, where=str(path / CONFIG)), True)
    return before, _with_defaults(config, True)


def _check_config(path: Path, config: dict[str, Any]) -> None:
    before, now = map(flatten, stored_and_new(path, config))
    changed = [k for k in sorted(before.keys() | now.keys()) if not _is_free(k)]
    absent = "(absent)"
    lines = [
        f"  {k}: {json.dumps(before[k]) if k in before else absent} -> "
        f"{json.dumps(now[k]) if k in now else absent}"
        for k in changed
        if (k in before, before.get(k)) != (k in now, now.get(k))
    ]
    if lines:
        raise UserError(
            f"{path} was started with another configuration:\n" + "\n".join(lines) + "\n"
            "Resuming may change only "
            + ", ".join(f"{k}.*" if "." not in k else k for k in FREE_KEYS)
            + ". Undo the changes, or set output.dir to another folder."
        )
