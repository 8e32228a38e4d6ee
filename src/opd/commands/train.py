"""`opd train`: a whole run, and its summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opd.commands.run_session import RunOptions, run_session
from opd.config import Run
from opd.run.console import Console, Style


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
    from opd.commands.report import report_after_training
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
    console, summary = run_session(cfg, distill, "train", RunOptions(resume, overwrite, style))
    if console is None:
        return summary
    if style == "json":
        console.out.print_json(json.dumps(summary), indent=None)
    for line in ["", *render_text(training_summary(summary))]:
        console.print(line)
    report_after_training(Path(summary["run"]), console.print)
    return summary
