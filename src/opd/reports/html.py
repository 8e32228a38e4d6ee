"""A document as one self-contained HTML file that loads nothing, with its JSON sidecar."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from opd.errors import UserError
from opd.reports.chat_turns import readable_prompt
from opd.reports.document import Document
from opd.reports.sanitize import visible
from opd.run.disk import write_output
from opd.run.outputs import require_no_input, require_writable_parent

SUFFIXES = (".html", ".htm")
SCRIPTS = ("dom.js", "tokens.js", "browse.js", "scroll.js")
TEMPLATES = resources.files("opd.reports") / "templates"


def render_html(document: Document) -> str:
    """The document as HTML. Every text is escaped and made visible; only our own script may run."""
    return _environment().get_template("report.html.j2").render(document=document)


def require_report_path(path: Path, inputs: Mapping[str, Path], *, replace: bool, how: str) -> None:
    """Check that a report and its JSON sidecar may be written, before any work is done for them.

    Args:
        path: of the HTML file.
        inputs: what the command reads, by key.
        replace: whether an older report may be replaced.
        how: what the user can change, for messages.

    Raises:
        UserError: no HTML suffix; an input; a file that is no report, or one that may not be
            replaced; a folder that cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path} cannot be the name of a report: it must end in {' or '.join(SUFFIXES)}; the "
            "JSON sidecar beside it gets the same name with .json."
        )
    for file in (path, path.with_suffix(".json")):
        require_no_input(file, inputs, key="report")
        if os.path.lexists(file) and not (replace and is_report(file)):
            kind = "" if is_report(file) else " and is no report of opd"
            raise UserError(f"{file} exists{kind}; it stays as it is. {how}")
    require_writable_parent(path, "report")


def is_report(path: Path) -> bool:
    """Whether a file is a report as `write_report` makes it, or the JSON sidecar of one."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
            if path.suffix == ".json":
                record = json.loads(start + file.read())
                return isinstance(record, dict) and {"title", "subtitle", "sections"} <= set(record)
    except (OSError, ValueError):
        return False
    return (
        start.lstrip().startswith(b"<!doctype html>")
        and b"default-src &#39;none&#39;; script-src &#39;sha256-" in start
    )


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
        write_output(path.with_suffix(".json"), record + b"\n")
        write_output(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}.") from None
    return path


@cache
def _environment() -> jinja2.Environment:
    script = "".join(map(_template, SCRIPTS))
    style = _template("report.css")
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
    environment.globals["readable_prompt"] = readable_prompt
    return environment


def _finalize(value: Any) -> Any:
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")
