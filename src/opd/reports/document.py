"""What a page is made of: plain parts that become HTML, and a JSON twin, from the same values.

A part that shows a number holds the number itself, so the two cannot differ. Any command whose
result people look at (report, compare, check, lab) builds a `Document` of these.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from markupsafe import Markup

from opd.run.jsonl import json_safe

Tone = Literal["good", "bad", "unclear"]


@dataclass(frozen=True, slots=True)
class Number:
    """A value and how it is written for people."""

    value: float | int | None
    text: str
    note: str = ""  # such as its interval

    def record(self) -> dict[str, Any]:
        """For the JSON twin."""
        return {"value": self.value, "shown": self.text, "note": self.note}


@dataclass(frozen=True)
class Sentence:
    """A statement and the numbers it rests on."""

    text: str
    evidence: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """For the JSON twin."""
        return {"text": self.text, "evidence": self.evidence, "values": self.values}


Cell = str | Number | Sentence


@dataclass(frozen=True)
class Tile:
    """One big number of the first screen."""

    label: str
    number: Number


@dataclass(frozen=True)
class Verdict:
    """The answer in words, before anything else."""

    kind: ClassVar[str] = "verdict"
    headline: str
    tone: Tone
    tiles: Sequence[Tile]
    sentences: Sequence[Sentence]
    advice: Sequence[Sentence] = ()
    caption: str = ""  # what the tiles are

    def record(self) -> dict[str, Any]:
        """For the JSON twin."""
        return {
            "headline": self.headline,
            "tone": self.tone,
            "caption": self.caption,
            "tiles": [{"label": t.label} | t.number.record() for t in self.tiles],
            "sentences": [s.record() for s in self.sentences],
            "advice": [s.record() for s in self.advice],
        }


@dataclass(frozen=True)
class Table:
    """Rows of cells; a folded one is opened by the reader."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    folded: bool = False

    def record(self) -> dict[str, Any]:
        """For the JSON twin."""
        rows = [[c if isinstance(c, str) else c.record() for c in row] for row in self.rows]
        return {
            "caption": self.caption,
            "columns": list(self.columns),
            "rows": rows,
            "note": self.note,
        }


@dataclass(frozen=True)
class Legend:
    """Names a line style of a chart; `style` is a class of the style sheet."""

    style: str
    text: str


@dataclass(frozen=True)
class Chart:
    """A drawing of `data`; the SVG holds numbers of its axes only, all words are around it."""

    kind: ClassVar[str] = "chart"
    title: str
    svg: Markup
    data: dict[str, Any]
    legend: Sequence[Legend] = ()
    note: str = ""
    name: str = ""

    def record(self) -> dict[str, Any]:
        """For the JSON twin."""
        return {"title": self.title, "name": self.name, "note": self.note, "data": self.data}


@dataclass(frozen=True)
class Charts:
    """Small charts side by side."""

    kind: ClassVar[str] = "charts"
    items: Sequence[Chart]

    def record(self) -> dict[str, Any]:
        """For the JSON twin."""
        return {"charts": [c.record() for c in self.items]}


@dataclass(frozen=True)
class Example:
    """A prompt with what was answered before and after."""

    prompt: str
    answer: str
    before: str
    after: str
    title: str


@dataclass(frozen=True)
class Examples:
    """Examples under one heading."""

    kind: ClassVar[str] = "examples"
    title: str
    items: Sequence[Example]
    note: str = ""

    def record(self) -> dict[str, Any]:
        """For the JSON twin."""
        keys = ("title", "prompt", "answer", "before", "after")
        items = [{k: getattr(e, k) for k in keys} for e in self.items]
        return {"title": self.title, "note": self.note, "examples": items}


@dataclass(frozen=True)
class Code:
    """Something to copy."""

    kind: ClassVar[str] = "code"
    caption: str
    text: str

    def record(self) -> dict[str, Any]:
        """For the JSON twin."""
        return {"caption": self.caption, "text": self.text}


@dataclass(frozen=True)
class Note:
    """A paragraph."""

    kind: ClassVar[str] = "note"
    text: str

    def record(self) -> dict[str, Any]:
        """For the JSON twin."""
        return {"text": self.text}


@dataclass(frozen=True)
class TokenSpan:
    """A token as drawn: its text, its colour class and what a pointer resting on it is told."""

    text: str
    shade: str
    title: str
    index: int


@dataclass(frozen=True)
class ShownRollout:
    """One rollout of the token view; `details` is what the panel shows for each token."""

    title: str
    note: str
    prompt: str
    spans: Sequence[TokenSpan]
    left_out: int
    details: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Tokens:
    """Rollouts, every token coloured by the teacher's advantage."""

    kind: ClassVar[str] = "tokens"
    items: Sequence[ShownRollout]
    legend: Sequence[Legend]
    texts: dict[str, str]
    note: str

    def panel(self) -> Markup:
        """The panel's data for the page's script: JSON in which no `<`, `>` or `&` is left."""
        data = {"texts": self.texts, "rollouts": [list(r.details) for r in self.items]}
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        for char in "<>&":
            text = text.replace(char, f"\\u{ord(char):04x}")
        return Markup(text)

    def record(self) -> dict[str, Any]:
        """For the JSON twin."""
        return {
            "note": self.note,
            "legend": [entry.text for entry in self.legend],
            "token_texts": self.texts,
            "rollouts": [
                {
                    "title": r.title,
                    "note": r.note,
                    "prompt": r.prompt,
                    "left_out": r.left_out,
                    "tokens": list(r.details),
                }
                for r in self.items
            ],
        }


Part = Verdict | Table | Chart | Charts | Examples | Code | Note | Tokens


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    name: str
    title: str
    parts: Sequence[Part]
    lead: str = ""


@dataclass(frozen=True)
class Document:
    """A page; `refresh_seconds` makes it reload itself, `source` is what its numbers come from."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    refresh_seconds: int | None = None
    source: str = "the run folder alone"

    def __post_init__(self) -> None:
        names = [s.name for s in self.sections]
        if len(set(names)) < len(names):  # they are anchors of the page and keys of its twin
            raise ValueError(f"sections share a name: {names}")

    def record(self) -> dict[str, Any]:
        """The JSON twin: every number and every text of the page."""
        sections = {
            s.name: {
                "title": s.title,
                "lead": s.lead,
                "parts": [{"kind": p.kind} | p.record() for p in s.parts],
            }
            for s in self.sections
        }
        record = {"title": self.title, "subtitle": self.subtitle, "sections": sections}
        return json_safe(record)
