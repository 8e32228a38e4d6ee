"""Numbers that a reader of a page sees, and those its JSON twin holds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

NUMBER = re.compile(r"[-\u2212+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
SILENT = ("svg", "script", "style")  # axes of drawings, which the twin's curves stand for; no text


class Shown(HTMLParser):
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
        found = dict(attrs)
        self._data = found.get("id") == "token-data"
        if tag in SILENT:
            self._silent.append(tag)
        self.texts += [found[k] for k in ("title", "aria-label", "alt") if found.get(k)]

    def handle_endtag(self, tag):
        if self._silent and self._silent[-1] == tag:
            self._silent.pop()
        self._data = False

    def handle_data(self, data):
        if self._data:
            self.data += data
        elif not self._silent:
            self.texts.append(data)


def shown_numbers(html: str) -> set[str]:
    """Every number a reader of the page finds, as written, without a sign that is a dash."""
    return {n for text in Shown(html).texts for n in numbers(text)}


def numbers(text: str) -> set[str]:
    return {n.lstrip("+-\u2212") for n in NUMBER.findall(text)}


def twin_numbers(value: object) -> set[str]:
    """Every number of the twin: those in its texts as written, its values as pages write them."""
    if isinstance(value, dict):
        return set().union(*(twin_numbers(v) | numbers(k) for k, v in value.items()))
    if isinstance(value, list):
        return set().union(*map(twin_numbers, value))
    if isinstance(value, str):
        return numbers(value)
    if isinstance(value, bool) or value is None:
        return set()
    # Tooltips of tokens are written with two decimals of the value in the twin.
    return {f"{abs(value):.2f}", f"{abs(value):g}"}


def not_in_twin(html: str, twin: dict) -> set[str]:
    return shown_numbers(html) - twin_numbers(twin)


def panel_rollouts(html: str) -> list:
    """What the page's script shows of tokens; empty without a token view."""
    data = Shown(html).data
    return json.loads(data)["rollouts"] if data else []


def twin_rollouts(twin: dict) -> list:
    parts = [p for s in twin["sections"].values() for p in s["parts"] if p["kind"] == "tokens"]
    return [r["tokens"] for part in parts for r in part["rollouts"]]
