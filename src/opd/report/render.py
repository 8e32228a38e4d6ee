"""A document as one HTML file that loads nothing, and its JSON twin."""

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

from opd.report.document import Document
from opd.report.safe import visible
from opd.run.files import DISK, write_bytes

FOLDER = resources.files("opd.report") / "templates"


def render(document: Document) -> str:
    """The page. Every text is escaped and made visible; only our own script may run."""
    return _environment().get_template("page.html.j2").render(page=document)


def write(document: Document, html: Path) -> Path:
    """Write the page and, beside it with the suffix .json, its twin; return the twin's path."""
    twin = html.with_suffix(".json")
    record = json.dumps(document.record(), indent=1, allow_nan=False).encode("ascii")
    write_bytes(twin, record + b"\n", DISK)
    write_bytes(html, render(document).encode("utf-8", "backslashreplace"), DISK)
    return twin


@cache
def _environment() -> jinja2.Environment:
    script, style = _text("tokens.js"), _text("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
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


def _text(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")
