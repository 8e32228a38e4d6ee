"""`opd train`: a whole run, and its summary."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from opd.commands.run_session import RunOptions, run_session
from opd.config import Run
from opd.run.console import Console, Style

if TYPE_CHECKING:
    from opd.training.session import Session


def run_train(
    cfg: Run, *, resume: bool = False, overwrite: bool = False, style: Style = "auto"
) -> dict[str, Any]:
    """Run a whole distillation and print its summary.

    Returns:
        The summary also found in the run folder's summary.json.

    Raises:
        UserError: an error the user can fix.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step under way was saved.
    """
    from opd.commands.auto import prepare
    from opd.commands.report import report_after_training, tracked_results
    from opd.recipes.distillation import distill
    from opd.reports.terminal import render_text
    from opd.reports.training_summary import training_summary
    from opd.setup.run_folder import require_flags, require_resumable, require_run_folder

    require_flags(resume=resume, overwrite=overwrite)
    if resume:
        require_resumable(cfg)
    elif cfg.recipe is not None:
        require_run_folder(cfg, resume=False, overwrite=overwrite)
    cfg = prepare(cfg, resume=resume, console=Console("plain" if style == "auto" else "quiet"))
    notes: list[str] = []

    def write_report(session: Session) -> None:
        page = report_after_training(session.folder.path, notes.append)
        if page is not None and session.trackers.is_open:
            session.trackers.log_results(tracked_results(session.folder.path, page))

    options = RunOptions(resume, overwrite, style, write_report)
    console, summary = run_session(cfg, distill, "train", options)
    if console is None:
        return summary
    if style == "json":
        console.out.print_json(json.dumps(summary), indent=None)
    for line in ["", *render_text(training_summary(summary)), *notes]:
        console.print(line)
    return summary
