"""A document as one self-contained HTML file that loads nothing, with its JSON sidecar."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from opd.errors import UserError
from opd.reports.document import Document
from opd.reports.sanitize import visible
from opd.run.disk import DISK, write_bytes

SUFFIXES = (".html", ".htm")
TEMPLATES = resources.files("opd.reports") / "templates"


def render_html(document: Document) -> str:
    """The document as HTML. Every text is escaped and made visible; only our own script may run."""
    return _environment().get_template("report.html.j2").render(document=document)


def write_report(document: Document, path: Path) -> Path:
    """Write the HTML and, beside it with the suffix .json, the JSON sidecar.

    Args:
        document: to write.
        path: of the HTML file; its folder is created if absent.

    Returns:
        `path`.

    Raises:
        UserError: the file name has no HTML suffix, or a file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path} cannot be the name of a report: it must end in {' or '.join(SUFFIXES)}; the "
            "JSON sidecar beside it gets the same name with .json."
        )
    record = json.dumps(document.record(), allow_nan=False).encode("ascii")
    text = render_html(document).encode("utf-8", "backslashreplace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path.with_suffix(".json"), record + b"\n", DISK)
        write_bytes(path, text, DISK)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}.") from None
    return path


@cache
def _environment() -> jinja2.Environment:
    script, style = _template("tokens.js"), _template("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Safe: the three are files of this package.
    environment.globals |= {"policy": policy, "script": Markup(script), "style": Markup(style)}
    return environment


def _finalize(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")
