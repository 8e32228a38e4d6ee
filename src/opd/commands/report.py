"""What `opd report`, `opd watch` and `opd compare` do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from opd.errors import UserError
from opd.reports.compare_page import comparison
from opd.reports.html import write_report
from opd.reports.read import read_run
from opd.reports.run_page import document

logger = logging.getLogger(__name__)

PAGE = "report.html"


def report(path: Path) -> Path:
    """Write `report.html` and `report.json` into a run folder; return the page's path.

    Raises:
        UserError: no run folder.
    """
    return write_report(document(read_run(path)), path / PAGE)


def report_while_alive(path: Path, *, every: float, say: Callable[[str], None]) -> Path:
    """Write the page again and again, until the run ends: then a last time, without refresh."""
    page = report(path)
    say(f"{page} reloads itself while the run goes on.")
    while read_run(path).alive:
        time.sleep(every)
        report(path)
    return report(path)


def report_after_training(path: Path, say: Callable[[str], None]) -> None:
    """Write the page at the end of a run. Whatever goes wrong is told; the run stays whole."""
    try:
        say(f"Report:        {report(path)}")
    except UserError as error:
        say(f"No report was written: {error}")
    # A page is never worth the run it is about.
    except Exception as error:
        logger.warning("No report was written, the run itself is whole: %s", error, exc_info=True)
        say(f"No report was written: {type(error).__name__}. `opd report {path}` tries again.")


def compare(paths: Sequence[Path], out: Path) -> Path:
    """Write the page that compares runs; return its path.

    Raises:
        UserError: too few runs, or one that is no run folder.
    """
    return write_report(comparison([read_run(path) for path in paths]), out)
