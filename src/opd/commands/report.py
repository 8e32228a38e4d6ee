"""`opd report` and `opd compare`: reports of run folders as HTML with a JSON sidecar."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from opd.errors import UserError
from opd.reports.compare_page import compare_document
from opd.reports.html import require_report_path, write_report
from opd.reports.read import read_run
from opd.reports.run_page import run_document
from opd.run.outputs import require_outside_run

logger = logging.getLogger(__name__)

REPORT = "report.html"


def report(path: Path) -> Path:
    """Write `report.html` and `report.json` into a run folder; return the path of the HTML.

    Raises:
        UserError: no run folder, or a `report.html` in it that is no report.
    """
    run = read_run(path)
    how = f"Move it out of {path}."
    require_report_path(path / REPORT, {}, replace=True, how=how)
    return write_report(run_document(run), path / REPORT)


def live_report(path: Path, *, interval: float, say: Callable[[str], None]) -> Path:
    """Rewrite the report until the run ends, and a last time after that, without reloading.

    Args:
        path: the run folder.
        interval: seconds between two reports.
        say: prints a line.
    """
    html = report(path)
    say(f"{html} reloads itself while the run is in progress.")
    while read_run(path).is_running:
        time.sleep(interval)
        report(path)
    return report(path)


def report_after_training(path: Path, say: Callable[[str], None]) -> None:
    """Write the report at the end of a run. Errors are printed, not raised: the run is complete.

    Args:
        path: the run folder.
        say: prints a line.
    """
    try:
        say(f"Report: {report(path)}")
    except UserError as error:
        say(f"No report was written: {error}")
    # A failing report must not fail the run it is about.
    except Exception as error:
        logger.warning("No report was written, the run is complete: %s", error, exc_info=True)
        say(f"No report was written: {type(error).__name__}. Try again with `opd report {path}`.")


def compare(paths: Sequence[Path], out: Path, *, overwrite: bool = False) -> Path:
    """Write the report that compares runs; return its path.

    Args:
        paths: run folders.
        out: HTML file to write.
        overwrite: replace an older report.

    Raises:
        UserError: too few runs, one that is no run folder, or `out` exists.
    """
    how = "Give another name with --out, or --overwrite to replace an older report."
    require_report_path(out, {}, replace=overwrite, how=how)
    for path in paths:
        require_outside_run(out, path, "--out")
        require_outside_run(out.with_suffix(".json"), path, "--out")
    return write_report(compare_document([read_run(path) for path in paths]), out)
