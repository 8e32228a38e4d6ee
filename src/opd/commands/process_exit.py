"""How the process ends: a message on stderr and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import typer


def fail(message: str, code: int) -> NoReturn:
    """Print a message and leave the process."""
    complain(message)
    end(code)


def complain(message: str) -> None:
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
