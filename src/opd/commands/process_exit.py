"""How the process ends: a message on stderr and an exit code."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import typer

INTERRUPTED = 130  # what shells expect after Ctrl-C
TERMINATED = 143
Command = Callable[..., Any] | None


def interruptible(command: Command) -> Command:
    """A command that ends quietly after Ctrl-C: whatever it was writing is gone or whole."""
    if command is None or hasattr(command, "__wrapped__"):
        return command

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("opd: interrupted.", err=True)
            sys.exit(INTERRUPTED)

    return run


def end_on_sigterm() -> None:
    """Let SIGTERM unwind the process, so that no temporary file stays."""

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(TERMINATED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, leave)


class _Earlier:
    first: str | None = None  # what `complain` said before the command looked for more


def forget_messages() -> None:
    """Begin a command line; a process may take several, in tests."""
    _Earlier.first = None


def fail(message: str, code: int) -> NoReturn:
    """Print a message, unless it was printed before, and leave the process."""
    _print("nothing else is wrong." if message == _Earlier.first else message)
    end(code)


def complain(message: str) -> None:
    """Print what is wrong already, before the command looks for more."""
    _Earlier.first = message
    _print(f"{message}\nLooking for more ...")


def _print(message: str) -> None:
    """Print a message on stderr, as far as the terminal can show it."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    text = f"opd: {message}".encode(encoding, "backslashreplace").decode(encoding)
    typer.echo(
        "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text), err=True
    )


def end(code: int) -> NoReturn:
    """Leave the process; one among several does so without tearing the interpreter down.

    gloo's threads outlive the process group (torch keeps it in a registry). One that asks for the
    interpreter's lock while that is torn down aborts the process, rarely, and the launcher then
    calls a finished run failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def report_crash(error: Exception) -> NoReturn:
    """A message for an error that is no `UserError`, and a line that tells where its traceback is.

    Exits with 2 for what the machine or the user caused, with 1 for a bug of opd.
    """
    from opd.run.crash import describe, save_traceback

    message = describe(error)
    path = save_traceback(error)
    if message is None:
        message = f"This is a bug of opd, please report it: {type(error).__name__}: {error}"
    where = f"\nThe traceback is in {path}." if path is not None else ""
    fail(f"{message}{where}", 1 if describe(error) is None else 2)
