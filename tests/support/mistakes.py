"""Typing a command: exit code, output, time, and what changed on the disk.

`type_command` calls `opd.cli.main` in this process, so that hundreds of mistakes run in a minute;
`type_in_a_process` starts the real thing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import yaml

from opd import cli
from opd.demo.run_config import PAIR
from opd.run.crash import note_folder

ROWS = [
    '{"problem": "sum pig gnu jay", "answer": "8"}',
    '{"problem": "sum newt elk", "answer": "0"}',
    '{"problem": "sum elk pig", "answer": "1"}',
]
HELD_OUT = ['{"problem": "sum jay jay", "answer": "2"}', '{"problem": "sum gnu", "answer": "5"}']


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: exit code.
        text: stdout and stderr.
        seconds: it took.
        changed: files and folders that are new, gone or different.
    """

    code: int
    text: str
    seconds: float
    changed: tuple[str, ...]

    @property
    def has_traceback(self) -> bool:
        """Whether a traceback was printed."""
        return "Traceback (most recent call last)" in self.text


def run_yaml(**changes) -> dict:
    """The content of a small run.yaml of the demo pair that works; sections are merged."""
    data = {
        "student": {"model": "student"},
        "teacher": {"model": "teacher"},
        "prompts": {"path": "train.jsonl"},
        "rollout": {"n": 2, "max_new_tokens": 8},
        "train": {"steps": 1, "prompts_per_step": 2},
        "eval": [{"path": "held.jsonl", "n": 1}],
        "output": {"dir": "run"},
    }
    for section, values in changes.items():
        merged = isinstance(values, dict) and isinstance(data.get(section), dict)
        data[section] = data[section] | values if merged else values
    return data


def make_workspace(folder: Path, **changes) -> None:
    """Write run.yaml, prompts, a held-out set, and the two models as links to the shipped ones."""
    (folder / "train.jsonl").write_text("\n".join(ROWS) + "\n")
    (folder / "held.jsonl").write_text("\n".join(HELD_OUT) + "\n")
    for role in ("student", "teacher"):
        (folder / role).symlink_to(PAIR / role)
    (folder / "run.yaml").write_text(yaml.safe_dump(run_yaml(**changes)))


def snapshot(folder: Path) -> dict[str, str]:
    """Every path under a folder with what is there; links are not followed."""
    seen = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            seen[name] = f"-> {path.readlink()}"
        elif path.is_file():
            seen[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            seen[name] = "folder" if path.is_dir() else "other"
    return seen


def type_command(folder: Path, *words: str, env: dict[str, str] | None = None) -> Outcome:
    """Type `opd ...` in a folder, in this process."""
    before = snapshot(folder)
    out = io.StringIO()
    started = time.perf_counter()
    with _in_folder(folder, env or {}), _captured(out):
        code = _exit_code(words)
    seconds = time.perf_counter() - started
    return Outcome(code, out.getvalue(), seconds, _changes(before, snapshot(folder)))


def type_in_a_process(
    folder: Path, *words: str, env: dict[str, str] | None = None, timeout: float = 120
) -> Outcome:
    """As `type_command`, in a process of its own."""
    before = snapshot(folder)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "opd", *words],
        cwd=folder,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    seconds = time.perf_counter() - started
    changes = _changes(before, snapshot(folder))
    return Outcome(done.returncode, done.stdout + done.stderr, seconds, changes)


def _exit_code(words: tuple[str, ...]) -> int:
    sys.argv = ["opd", *words]
    note_folder(None)
    try:
        cli.main()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 1
    return 0


def _changes(before: dict[str, str], after: dict[str, str]) -> tuple[str, ...]:
    return tuple(p for p in sorted(before | after) if before.get(p) != after.get(p))


@contextlib.contextmanager
def _in_folder(folder: Path, env: dict[str, str]):
    cwd, argv, environ = Path.cwd(), sys.argv, dict(os.environ)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    os.chdir(folder)
    os.environ.update(env)
    try:
        yield
    finally:
        os.chdir(cwd)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environ)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _captured(out: io.StringIO):
    """Everything printed and logged goes to `out`, warnings included."""
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, [logging.StreamHandler(out)]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(out),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            root.handlers = handlers
            cli._Debug.on = False
