"""A document as one HTML file that loads nothing, and its JSON twin."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from opd.errors import UserError
from opd.reports.document import Document, Section
from opd.reports.sanitize import visible
from opd.run.disk import DISK, write_bytes

SUFFIXES = (".html", ".htm")
FOLDER = resources.files("opd.reports") / "templates"


def render(document: Document) -> str:
    """The page. Every text is escaped and made visible; only our own script may run."""
    return _environment().get_template("page.html.j2").render(page=document)


def render_page(
    title: str, sections: Sequence[Section], *, subtitle: str = "", source: str = "this command"
) -> str:
    """Any result people look at, as one page of the report's parts, style and policy.

    Args:
        title: of the page.
        sections: parts under headings; the first is shown without its heading, so it should
            begin with a `Verdict`. Names are anchors and must differ.
        subtitle: beside the title.
        source: what the numbers come from, for the last line of the page.

    Raises:
        ValueError: two sections share a name.
    """
    return render(Document(title, subtitle, sections, source=source))


def write_page(
    html: Path,
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: str = "",
    source: str = "this command",
) -> Path:
    """Write what `render_page` makes, and its JSON twin beside it; return the page's path.

    Raises:
        UserError: the folder cannot be written, or `html` has no suffix of a page.
    """
    write(Document(title, subtitle, sections, source=source), html)
    return html


def write(document: Document, html: Path) -> Path:
    """Write the page and, beside it with the suffix .json, its twin; return the twin's path.

    Raises:
        UserError: the name is not one of a page, or the page cannot be written there.
    """
    if html.suffix not in SUFFIXES:
        raise UserError(
            f"{html} is no name of a page: it must end in {' or '.join(SUFFIXES)}; the JSON file "
            "beside it gets the same name with .json."
        )
    twin = html.with_suffix(".json")
    record = json.dumps(document.record(), allow_nan=False).encode("ascii")
    page = render(document).encode("utf-8", "backslashreplace")
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(twin, record + b"\n", DISK)
        write_bytes(html, page, DISK)
    except OSError as error:
        raise UserError(f"{html} cannot be written: {error}.") from None
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
