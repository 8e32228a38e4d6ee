"""`opd report` and `opd compare`: reports of run folders as HTML with a JSON sidecar."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from opd.errors import UserError
from opd.reports.compare_page import compare_document
from opd.reports.document import Document
from opd.reports.html import require_report_path, write_report
from opd.reports.read import read_run
from opd.reports.run_page import run_document
from opd.reports.terminal import render_text
from opd.reports.token_view import rollouts_by_part
from opd.run.outputs import require_outside_run
from opd.run.trackers import Results

logger = logging.getLogger(__name__)

REPORT = "report.html"
MAX_TRACKED = 200  # rollouts that trackers get


def report(path: Path) -> Path:
    """Write `report.html` and `report.json` into a run folder; return the path of the HTML.

    Raises:
        UserError: no run folder, or a `report.html` in it that is no report.
    """
    return report_and_write(path)[1]


def report_and_write(path: Path) -> tuple[Document, Path]:
    """As `report`; returns the document, too."""
    run = read_run(path)
    how = f"Move it out of {path}."
    require_report_path(path / REPORT, {}, replace=True, how=how)
    document = run_document(run)
    return document, write_report(document, path / REPORT)


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


def report_after_training(path: Path, say: Callable[[str], None]) -> Path | None:
    """Write the report at the end of a run. Errors are printed, not raised: the run is complete.

    Args:
        path: the run folder.
        say: prints a line.

    Returns:
        The HTML file; None if it could not be written.
    """
    try:
        page = report(path)
    except UserError as error:
        say(f"No report was written: {error}")
        return None
    # A failing report must not fail the run it is about.
    except Exception as error:
        logger.warning("No report was written, the run is complete: %s", error, exc_info=True)
        say(f"No report was written: {type(error).__name__}. Try again with `opd report {path}`.")
        return None
    say(f"Report: {page}")
    return page


ROLLOUT_COLUMNS = ("step", "prompt", "completion", "tokens", "kl_per_token")


def tracked_results(path: Path, page: Path) -> Results:
    """The report of a run and its kept rollouts, for the trackers."""
    scored = [r for rollouts in rollouts_by_part(read_run(path)).values() for r in rollouts]
    rows = [
        (r.step, r.rollout.prompt.text, r.text, len(r.rollout), -r.mean)
        for r in scored[:MAX_TRACKED]
    ]
    return Results(page, ROLLOUT_COLUMNS, rows)


def compare(paths: Sequence[Path], out: Path, *, overwrite: bool = False) -> Path:
    """Write the report that compares runs; return its path.

    Args:
        paths: run folders.
        out: HTML file to write.
        overwrite: replace an older report.

    Raises:
        UserError: too few runs, one that is no run folder, or `out` exists.
    """
    return compare_and_write(paths, out, overwrite=overwrite)[1]


def compare_and_write(
    paths: Sequence[Path], out: Path, *, overwrite: bool = False
) -> tuple[Document, Path]:
    """As `compare`; returns the document, too."""
    how = "Give another name with --out, or --overwrite to replace an older report."
    require_report_path(out, {}, replace=overwrite, how=how)
    for path in paths:
        require_outside_run(out, path, "--out")
        require_outside_run(out.with_suffix(".json"), path, "--out")
    document = compare_document([read_run(path) for path in paths])
    return document, write_report(document, out)


def comparison_text(document: Document, page: Path, *, as_json: bool) -> str:
    """What `opd compare` prints: the verdict and the path of the report."""
    if as_json:
        return verdict_json(document, page)
    first = replace(document, sections=document.sections[:1])
    return "\n".join([*render_text(first), "", f"Report: {page}"])


def verdict_json(document: Document, page: Path) -> str:
    """One JSON object: the path of the report and its verdict; the rest is in the JSON sidecar."""
    parts = document.record()["sections"]["verdict"]["parts"]
    return json.dumps({"report": str(page), "verdict": parts}, allow_nan=False)
