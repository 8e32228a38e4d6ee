"""Runs of the product from a configuration, quiet, with the folder closed afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

from opd import config
from opd.recipes.distillation import distill
from opd.run.console import Console
from opd.setup.session import build


def open_run(data: dict[str, Any], *, resume: bool = False, overwrite: bool = False):
    """A session and its cold start's completions; close `session.folder` afterwards."""
    quiet = Console("quiet")
    return build(config.parse(data), resume=resume, overwrite=overwrite, console=quiet)


@contextmanager
def opened(data: dict[str, Any], **flags: bool):
    """As `open_run`, closed at the end."""
    session, completions = open_run(data, **flags)
    try:
        yield session, completions
    finally:
        session.folder.close()


def run_to_end(data: dict[str, Any], **flags: bool) -> dict[str, Any]:
    """A whole run; returns its summary."""
    with opened(data, **flags) as (session, completions):
        return distill(session, completions)
