"""The first look of a command at its run: what needs no model library is said within a second."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opd.commands.outputs import require_check_outputs, require_section, require_selection_outputs
from opd.commands.process_exit import complain
from opd.config import Run, load, load_each
from opd.setup.first_look import look_first
from opd.setup.problems import Problems, listed

log = logging.getLogger(__name__)


def load_and_look(file: Path, overrides: Sequence[str], **how: Any) -> Run:
    """The run of a file, looked at.

    Args:
        file: run.yaml.
        overrides: `key=value`.
        how: as `opd.setup.first_look.look_first`.

    Raises:
        UserError: as `opd.config.load`.
    """
    cfg = load(file, overrides)
    look(cfg, **how)
    return cfg


def look_at_selection(file: Path, overrides: Sequence[str], *, overwrite: bool) -> Run:
    """As `load_and_look`, with the outputs of `opd select`."""
    cfg = load(file, overrides)
    spec = require_section(cfg)
    look(cfg, lambda: require_selection_outputs(cfg, spec, overwrite=overwrite))
    return cfg


def look_at_check(file: Path, overrides: Sequence[str], apply: Path | None) -> None:
    """As `load_and_look`, with the outputs of `opd check`, for one teacher or several."""
    cfgs = load_each(file, overrides)
    cfg = cfgs[0] if len(cfgs) == 1 else cfgs[0].model_copy(update={"teacher": None})
    look(cfg, lambda: require_check_outputs(cfgs, file, apply), judges_pair=True)


def look(cfg: Run, *checks: Callable[[], None], **how: Any) -> None:
    """Refuse a run if something is wrong and nothing more can be.

    Where more can be wrong, what is known is printed; the command finds that again, and the rest.

    Args:
        cfg: the run.
        checks: further ones, of the command's own.
        how: as `opd.setup.first_look.look_first`.

    Raises:
        UserError: with everything that is wrong.
    """
    if int(os.environ.get("RANK", "0")):
        return  # the first of several processes says it
    problems = Problems()
    for check in checks:
        problems.attempt(check)
    first = look_first(cfg, **how)
    problems.messages += first.messages
    if problems.messages and first.complete:
        for warning in first.warnings:
            log.warning(warning)
        problems.raise_all()
    if problems.messages:
        complain(listed(problems.messages))
