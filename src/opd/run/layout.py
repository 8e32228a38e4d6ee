"""Names of files, folders and phases of a run, and which paths in a run folder are the run's own.

A run folder may hold more than the run wrote: notes, prompts, a tracker's folder. What is not named
here is never removed, and a path that is named here is never a symbolic link.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from opd.models.saved_folder import is_model_file, is_model_folder

CONFIG = "config.json"
ENV = "env.json"
LOCK = "run.lock"
JOURNALS = ("metrics.jsonl", "timings.jsonl", "alarms.jsonl")
FOLDERS = ("checkpoints", "rollouts", "eval")  # made at the start
REFUSED = "refused"  # rollouts of skipped updates
COLD_START = "coldstart"  # phase, and its folder
ON_POLICY = "on-policy"  # the other phase
BEST = "best"  # folder of the best student so far, kept from pruning
FINAL = "final"  # the student at the end, a Hugging Face folder
WRONG_ANSWERS = "wrong-answers"  # responses of a server that could not be used
INPUTS = "inputs.json"  # what the run read: hashes of prompts and models
STOP_REQUEST = "stop.request"  # asks the run to stop after its step
TRACEBACK = "traceback.txt"  # of the error that ended a command
SYNC = "sync"  # weights for a rollout server

RECORDS = (
    *(CONFIG, ENV, LOCK, *JOURNALS),
    *(
        "summary.json",
        "check.json",
        INPUTS,
        "teacher.json",
        "coldstart.json",
        "tokens.parquet",
        TRACEBACK,
        "rollout-server.log",
        "teacher-server.log",
        STOP_REQUEST,
    ),
)
_NAMED_TEACHER = re.compile(r"teacher-[A-Za-z0-9][A-Za-z0-9_-]{0,31}(\.json|-server\.log)")
_CHECKPOINT_FILE = re.compile(r"MANIFEST\.json|state\.json|[A-Za-z0-9][A-Za-z0-9_-]*\.safetensors")
_TEMPORARY = re.compile(r"(\.trash)?\.tmp-\d+$")
_STEP = re.compile(r"step-\d+(\.old)?")
_CHECKPOINTS = ("checkpoints", BEST, f"{COLD_START}/checkpoints")
_ROLLOUTS = ("rollouts", REFUSED, f"{COLD_START}/rollouts")
_MODELS = (FINAL, f"{COLD_START}/student")
_FILES = {  # name of a folder: files of the run in it
    **dict.fromkeys(_ROLLOUTS, re.compile(r"step-\d+\.parquet")),
    "eval": re.compile(r"step-\d+-[A-Za-z0-9][A-Za-z0-9._-]*\.(json|parquet)"),
    "tensorboard": re.compile(r"events\.out\.tfevents\..*"),
}
_WRONG_ANSWER = re.compile(r"[0-9a-f]{12}(/(asked-\d+|answered-\d+|why\.json))?")


class Entry(NamedTuple):
    """A path of the run in its folder.

    Attributes:
        path: of the entry.
        folder: whether the run has a folder under this name; else a file.
    """

    path: Path
    folder: bool


def check_record(folder: str | Path) -> Path:
    """Where `opd check` leaves its record: beside the run folder, which does not exist yet."""
    folder = Path(folder)
    return folder.with_name(f"{folder.name}.check.json")


def is_checkpoint_file(name: str) -> bool:
    """Whether a checkpoint has a file of this name."""
    return _CHECKPOINT_FILE.fullmatch(name) is not None


def is_own_file(relative: str | PurePosixPath) -> bool:
    """Whether a run writes a file of this name; temporary names of one count.

    Args:
        relative: to the run folder.
    """
    name, parent = _split(relative)
    if parent == ".":
        return name in RECORDS or _NAMED_TEACHER.fullmatch(name) is not None
    if (files := _FILES.get(parent)) is not None:
        return files.fullmatch(name) is not None
    step, folder = _split(parent)
    if folder in _CHECKPOINTS:
        return _STEP.fullmatch(step) is not None and is_checkpoint_file(name)
    if folder == WRONG_ANSWERS:
        return _WRONG_ANSWER.fullmatch(f"{step}/{name}") is not None
    return any(is_model_file(inside) for inside in _inside_models(relative))


def is_own_folder(relative: str | PurePosixPath) -> bool:
    """As `is_own_file`, for a folder."""
    name, parent = _split(relative)
    path = name if parent == "." else f"{parent}/{name}"
    fixed = (*_CHECKPOINTS, *_FILES, *_MODELS, COLD_START, WRONG_ANSWERS, SYNC)
    if path in fixed:
        return True
    if parent in (*_CHECKPOINTS, SYNC):
        return _STEP.fullmatch(name) is not None
    if parent == WRONG_ANSWERS:
        return _WRONG_ANSWER.fullmatch(name) is not None
    return any(is_model_folder(inside) for inside in _inside_models(relative))


def own_entries(folder: Path) -> Iterator[Entry]:
    """What a folder has under the names of a run: each folder before its content.

    Links are entries as well, and are not followed.
    """
    return _own_entries(folder, folder)


def _own_entries(root: Path, folder: Path) -> Iterator[Entry]:
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda e: e.name)
    for entry in entries:
        path = Path(entry.path)
        relative = PurePosixPath(path.relative_to(root).as_posix())
        if is_own_folder(relative):
            yield Entry(path, folder=True)
            if entry.is_dir(follow_symlinks=False):
                yield from _own_entries(root, path)
        elif is_own_file(relative):
            yield Entry(path, folder=False)


def _split(relative: str | PurePosixPath) -> tuple[str, str]:
    """Name and parent, without what marks them as temporary."""
    parts = [_TEMPORARY.sub("", part) for part in PurePosixPath(relative).parts]
    return parts[-1] if parts else "", "/".join(parts[:-1]) or "."


def _inside_models(relative: str | PurePosixPath) -> Iterator[str]:
    """The path relative to each folder of a saved model that it is in."""
    name, parent = _split(relative)
    path = f"{parent}/{name}"
    for model in (*_MODELS, *_synced(path)):
        if path.startswith(f"{model}/"):
            yield path.removeprefix(f"{model}/")


def _synced(path: str) -> tuple[str, ...]:
    folder, _, rest = path.partition("/")
    step, _, _ = rest.partition("/")
    return (f"{SYNC}/{step}",) if folder == SYNC and _STEP.fullmatch(step) else ()
