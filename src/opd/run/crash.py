"""What a command says when something other than a configuration goes wrong, and where details go.

Full disks, missing permissions and exhausted memory are a message, like any mistake. Whatever is
left is a bug of opd: its traceback is written to a file that one line names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import traceback
from pathlib import Path

from opd.errors import NO_MEMORY
from opd.run.layout import TRACEBACK
from opd.run.redact import redact_text

RESUME = "What a run has saved is complete: `--resume` goes on from its last checkpoint."
_ADVICE = {
    errno.ENOSPC: f"Free some space on that disk. {RESUME}",
    errno.EDQUOT: f"Free some space within your quota. {RESUME}",
    errno.EROFS: "The disk is mounted read-only: set output.dir (or the option that names the "
    "file) to one that can be written.",
    errno.EACCES: "Check the permissions of the file and of its folder.",
    errno.EPERM: "Check the permissions of the file and of its folder.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.ELOOP: "There is a symbolic link where a file is expected; opd does not follow it.",
    errno.EMFILE: "Too many files are open: raise the limit (`ulimit -n`).",
    errno.ENFILE: "Too many files are open on this machine.",
    errno.ENOENT: "It is gone, or its folder is: was it moved or deleted while the command ran?",
    errno.ENOTDIR: "A part of this path is a file.",
    errno.EISDIR: "There is a folder where a file is expected.",
    errno.EIO: f"The disk fails. {RESUME}",
    errno.ESTALE: f"The network disk lost the file. {RESUME}",
}
# What gloo and NCCL say of a process that is no longer there.
_GONE = ("gloo/transport", "remote process exit")
_FULL = ("No space left on device", "os error 28")
_MEMORY = (
    "Memory is exhausted. Lower train.tokens_per_microbatch, rollout.max_new_tokens or "
    "train.prompts_per_step, or set student.gradient_checkpointing=true. " + RESUME
)


class _Running:
    """The run folder that this process writes."""

    folder: Path | None = None


def note_folder(folder: Path | None) -> None:
    """Remember the run folder of this process: tracebacks go there."""
    _Running.folder = folder


def describe(error: BaseException) -> str | None:
    """A message for an error that a machine or a user causes; None for what is a bug."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"{_first_line(text)} {_MEMORY}".strip()
    if any(part in text for part in NO_MEMORY):
        return f"{_first_line(text)} {_MEMORY}"
    if any(part in text for part in _FULL):
        return f"No space left on the disk{_of(error)}. {_ADVICE[errno.ENOSPC]}"
    if isinstance(error, OSError) and error.errno is not None:
        advice = _ADVICE.get(error.errno, "")
        return f"{error.strerror or text}{_of(error)}. {advice}".rstrip()
    if isinstance(error, RuntimeError) and any(part in text for part in _GONE):
        return f"Another process of this run has ended. What it printed says why. {RESUME}"
    if isinstance(error, RuntimeError) and "CUDA" in text:
        return f"The GPU failed: {_first_line(text)} {RESUME}"
    return None


def save_traceback(error: BaseException) -> Path | None:
    """Write the traceback to the run folder, else to a temporary file; None if nothing can be."""
    text = redact_text("".join(traceback.format_exception(error)))
    if _Running.folder is not None:
        path = _Running.folder / TRACEBACK
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
            with open(os.open(path, flags, 0o644), "w", encoding="utf-8") as file:
                file.write(text)
            return path
    with contextlib.suppress(OSError):
        fd, name = tempfile.mkstemp(prefix="opd-traceback-", suffix=".txt")
        with open(fd, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return Path(name)
    return None


def _of(error: BaseException) -> str:
    name = getattr(error, "filename", None)
    return f": {os.fsdecode(name)}" if isinstance(name, str | bytes) else ""


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""
