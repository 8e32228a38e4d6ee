"""`opd coldstart`: the cold start alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from opd.commands.run_session import RunOptions, run_session
from opd.config import Run
from opd.errors import UserError
from opd.run.console import Style

if TYPE_CHECKING:
    from opd.recipes.coldstart import CompletionSource
    from opd.training.session import Session


def run_coldstart(
    cfg: Run, *, resume: bool = False, overwrite: bool = False, style: Style = "auto"
) -> dict[str, Any]:
    """Run the cold start; `opd train --resume` goes on from it.

    Returns:
        Its record, also found in the run folder's coldstart.json.

    Raises:
        UserError: no `coldstart` section, or one that begins in a run.
    """
    if cfg.coldstart is None:
        raise UserError("There is no `coldstart` section. Add `coldstart: {}` for every default.")
    if cfg.coldstart.when == "alarm":
        raise UserError("coldstart.when=alarm begins in a run. For one now: coldstart.when=start.")
    if resume:
        from opd.setup.run_folder import require_resumable

        require_resumable(cfg)
    options = RunOptions(resume, overwrite, style)
    console, record = run_session(cfg, _cold_start, "coldstart", options)
    if console is not None and style == "json":
        console.out.print_json(json.dumps(record), indent=None)
    elif console is not None:
        console.print(f"Student: {record['run']}/coldstart/student")
        console.print("`opd train ... --resume` goes on from here, on-policy.")
    return record


def _cold_start(session: Session, completions: CompletionSource | None) -> dict[str, Any]:
    from opd.models.saving import save_final
    from opd.recipes.coldstart import before_training

    assert completions is not None
    record: dict[str, Any] = before_training(session, completions).facts["coldstart"]
    if session.folder.writes:
        student = session.folder.path / "coldstart" / "student"
        save_final(session.learner.student, session.tokenizer, student)
    return record | {"run": str(session.folder.path)}
