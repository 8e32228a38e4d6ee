"""Files that commands write: never over an input, over another file only on request."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opd.config import input_paths, output_paths
from opd.errors import UserError
from opd.run.layout import is_own_file, is_own_folder


def require_free(path: Path, inputs: Mapping[str, Path], *, key: str, replace: str | None) -> None:
    """Check that a file may be written, before any work is done for it.

    Args:
        path: the file.
        inputs: what the command reads, by key (see `opd.config.input_paths`).
        key: configuration key or option that names the file, for messages.
        replace: option that allows to replace another file; None: it was given.

    Raises:
        UserError: the path is an input or inside one, a folder, a file that exists while `replace`
            is not None, or in a folder that cannot be written.
    """
    require_no_input(path, inputs, key=key)
    if path.is_dir():
        raise UserError(f"{key}={path} is a folder; name a file.")
    if (path.exists() or path.is_symlink()) and replace is not None:
        raise UserError(
            f"{path} exists and stays as it is. Set {key} to another name"
            + (f", or give {replace} to replace it." if replace else ".")
        )
    require_writable_parent(path, key)


def require_no_input(path: Path, inputs: Mapping[str, Path], *, key: str) -> None:
    """Check that a file to be written is no input, and inside no input folder.

    Raises:
        UserError: naming both keys.
    """
    output = _resolved(path)
    for name, source in inputs.items():
        resolved = _resolved(source)
        if output == resolved or _same_file(path, source):
            raise UserError(
                f"{key}={path} is also {name}: the output would replace what is read. Set {key} to "
                "another name."
            )
        if resolved.is_dir() and output.is_relative_to(resolved):
            raise UserError(
                f"{key}={path} is inside {name}={source}, which is read. Set {key} to a name "
                "elsewhere."
            )


def require_inputs_outside(folder: Path, inputs: Mapping[str, Path]) -> None:
    """Check that a run folder holds no input under a name that the run writes or removes.

    Args:
        folder: the run folder.
        inputs: what the run reads, by key.

    Raises:
        UserError: naming the input, also if the run folder is one.
    """
    root = _resolved(folder)
    for name, source in inputs.items():
        resolved = _resolved(source)
        if resolved == root:
            raise UserError(
                f"output.dir={folder} is also {name}. Set output.dir to a folder of the run's own."
            )
        if not resolved.is_relative_to(root):
            continue
        relative = resolved.relative_to(root).as_posix()
        if is_own_file(relative) or is_own_folder(relative):
            raise UserError(
                f"{name}={source} is inside the run folder, where the run itself writes and "
                f"--overwrite deletes ({relative}). Set output.dir to another folder, or copy "
                f"{relative} elsewhere and set {name} to the copy."
            )


def require_folders_apart(config: Mapping[str, Any]) -> None:
    """Check that the folders of a run beside its own (cache, weights for a server) are no inputs.

    Args:
        config: plain values, as in run.yaml.

    Raises:
        UserError: naming both keys.
    """
    inputs, outputs = input_paths(config), output_paths(config)
    for key in ("teacher.cache.dir", "rollout.sync_dir"):
        if key not in outputs:
            continue
        path = outputs[key]
        require_no_input(path, inputs, key=key)
        if path.exists() and not path.is_dir():
            raise UserError(f"{key}={path} is a file; name a folder.")
        require_writable_parent(path, key)


def require_outside_run(path: Path, run: Path, key: str) -> None:
    """Check that a path to be written is not one that a run writes in its folder.

    Args:
        path: to be written.
        run: the run folder.
        key: option or key that names the path, for messages.

    Raises:
        UserError: it is.
    """
    output, root = _resolved(path), _resolved(run)
    if output == root:
        raise UserError(f"{key}={path} is the run folder itself. Give another name.")
    if output.is_relative_to(root):
        relative = output.relative_to(root).as_posix()
        if is_own_file(relative) or is_own_folder(relative):
            raise UserError(f"{key}={path} is a name that the run itself uses. Give another name.")


def require_writable_parent(path: Path, key: str) -> None:
    """Check that the folder of a file can be written, or made.

    Raises:
        UserError: naming the folder that cannot.
    """
    parent = path.absolute().parent
    while not parent.exists():
        if parent.is_symlink():
            raise UserError(f"{key}={path}: {parent} is a link to nothing.")
        parent = parent.parent
    if not parent.is_dir():
        raise UserError(f"{key}={path}: {parent} is a file, not a folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{key}={path}: nothing can be written in {parent} (permissions).")


def _resolved(path: Path) -> Path:
    """The path behind all links.

    Raises:
        UserError: a link that leads to itself.
    """
    try:
        return path.resolve()
    except (RuntimeError, OSError):
        raise UserError(f"{path} is a link that leads back to itself. Remove it.") from None
    except ValueError:
        raise UserError(f"{str(path)!r} holds a null character, which no path may.") from None


def _same_file(a: Path, b: Path) -> bool:
    """Whether two names are of one file, as hard links are."""
    try:
        return a.samefile(b)
    except OSError:
        return False
