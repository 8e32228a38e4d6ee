"""A file that asks a run to stop after its step, as Ctrl-C does, from without its terminal."""

from __future__ import annotations

from pathlib import Path

from opd.run.layout import STOP_REQUEST


def ask_to_stop(folder: Path) -> None:
    """Ask the process that writes a run folder to stop after its step and save it."""
    (folder / STOP_REQUEST).touch()


def take_stop_request(folder: Path) -> bool:
    """Whether somebody asked; the request is removed."""
    try:
        (folder / STOP_REQUEST).unlink()
    except FileNotFoundError:
        return False
    return True
