"""What the Python calls return: a typed value, and its report for people."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from opd.reports.document import Document
from opd.reports.html import render_html, write_report
from opd.reports.terminal import render_text

T = TypeVar("T")

FRAME_HEIGHT = 640  # pixels of a report in a notebook


@dataclass(frozen=True)
class Result(Generic[T]):
    """The result of a call.

    In a notebook it shows its report; printed, its first section as text.

    Attributes:
        value: the result itself.
        document: the report, as data.
        path: of the report or folder that was written; None if nothing was.
    """

    value: T
    document: Document
    path: Path | None = None

    def save(self, path: str | Path) -> Path:
        """Write the report as HTML, with its JSON sidecar; return the path of the HTML.

        Raises:
            UserError: no HTML suffix, or the file cannot be written.
        """
        return write_report(self.document, Path(path))

    def __str__(self) -> str:
        return "\n".join(render_text(replace(self.document, sections=self.document.sections[:1])))

    def _repr_html_(self) -> str:
        """The report in a frame of its own: its script sees nothing of the notebook."""
        page = html.escape(render_html(self.document), quote=True)
        style = f"width:100%;height:{FRAME_HEIGHT}px;border:1px solid #ccc"
        return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'
