"""Checks of HTML reports: what a browser parses, and whether the JSON sidecar has every number."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from typing import Any

NUMBER = re.compile(r"[-\u2212+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
PACKED = "application/x-deflate"  # data of the page's script
SILENT = ("svg", "script", "style")  # axes of drawings, whose values the sidecar has; no text


TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "h4", "p"),
    *("main", "section", "dl", "div", "dt", "dd", "b", "span", "ul", "li", "nav", "a", "figure"),
    *("figcaption", "i", "svg", "g", "path", "defs", "use", "text", "clippath", "rect", "image"),
    *("table", "thead", "tbody", "tr", "th", "td", "small", "details", "summary", "article"),
    *("wbr", "pre", "code", "noscript", "aside", "script", "footer", "button"),
}


class Elements(HTMLParser):
    """Elements, attributes and text as a browser parses them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def check_html(html: str) -> Elements:
    """Assert: only the template's elements and script, no handlers, no addresses."""
    page = Elements(html)
    assert {tag for tag, _ in page.elements} <= TAGS
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href", "src", "action", "data", "srcdoc"):
                assert (value or "").startswith(("#", "data:image/png;base64,")), (tag, name, value)
            if name == "style":
                assert "url(" not in (value or "").replace("url(#", "")
    scripts = page.named("script")
    types = [s.get("type") for s in scripts]
    assert types[-1] is None
    assert set(types[:-1]) <= {PACKED, "application/json"}  # the latter on pages of the gallery
    policy = page.named("meta")[1]["content"] or ""
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)[-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    return page


class VisibleText(HTMLParser):
    """Text and tooltips between header and footer; drawings, scripts and styles left out."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self.data = ""  # of the token view
        self._silent: list[str] = []
        self._data = False
        self.feed(html[html.index("<header") : html.index("<footer")])
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self._data = attributes.get("id") == "token-data"
        if tag in SILENT:
            self._silent.append(tag)
        self.texts += [attributes[k] for k in ("title", "aria-label", "alt") if attributes.get(k)]

    def handle_endtag(self, tag):
        if self._silent and self._silent[-1] == tag:
            self._silent.pop()
        self._data = False

    def handle_data(self, data):
        if self._data:
            self.data += data
        elif not self._silent:
            self.texts.append(data)


def visible_numbers(html: str) -> set[str]:
    """Every number in the visible text of a report, as written, without its sign."""
    return {n for text in VisibleText(html).texts for n in numbers(text)}


def numbers(text: str) -> set[str]:
    return {n.lstrip("+-\u2212") for n in NUMBER.findall(text)}


def sidecar_numbers(value: object) -> set[str]:
    """Every number of the sidecar: those in its texts, and its values as reports format them."""
    if isinstance(value, dict):
        return set().union(*(sidecar_numbers(v) | numbers(k) for k, v in value.items()))
    if isinstance(value, list):
        return set().union(*map(sidecar_numbers, value))
    if isinstance(value, str):
        return numbers(value)
    if isinstance(value, bool) or value is None:
        return set()
    # Tooltips of tokens show two decimals of the value in the sidecar.
    return {f"{abs(value):.2f}", f"{abs(value):g}"}


def not_in_sidecar(html: str, sidecar: dict) -> set[str]:
    return visible_numbers(html) - sidecar_numbers(sidecar)


def panel_rollouts(html: str) -> list:
    """Token details that the script of the report shows; empty without a token view."""
    data = VisibleText(html).data
    return unpacked(data)["rollouts"] if data else []


def unpacked(data: str) -> Any:
    """What `opd.reports.browse.packed_json` made; older pages of the gallery have plain JSON."""
    if data.startswith("{"):
        return json.loads(data)
    return json.loads(zlib.decompress(base64.b64decode(data, validate=True)))


def browsed(html: str) -> list[dict]:
    """Data of the lists that the script of the report builds."""
    pattern = rf'<div class="browse" id="[^"]*"><script type="{PACKED}">(.*?)</script>'
    return [unpacked(data) for data in re.findall(pattern, html, re.DOTALL)]


def texts_of(value: object) -> list[str]:
    """Every text in JSON data, but the keys."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for each in value for text in texts_of(each)]
    return [value] if isinstance(value, str) else []


def sidecar_rollouts(sidecar: dict) -> list:
    parts = [p for s in sidecar["sections"].values() for p in s["parts"] if p["kind"] == "tokens"]
    return [r["tokens"] for part in parts for r in part["rollouts"]]
