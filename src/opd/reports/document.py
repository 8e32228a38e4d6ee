"""The data structure of a report: sections of plain parts, independent of the output format.

Every command that shows a result to people (report, compare, check, select, train, lab) builds one
`Document`. `opd.reports.html` renders it as HTML with a JSON sidecar, `opd.reports.terminal` as
lines of plain text, `opd.reports.markdown` as Markdown. A part that shows a number holds the number
itself, so the formats cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from markupsafe import Markup

from opd.reports.browse import Browse, packed_json
from opd.run.jsonl import json_safe

Tone = Literal["good", "bad", "unclear"]


@dataclass(frozen=True, slots=True)
class Number:
    """A value and its formatted text.

    Attributes:
        value: for the JSON sidecar; None if unknown.
        text: as shown.
        note: shown beside it, such as its interval.
    """

    value: float | int | None
    text: str
    note: str = ""

    def record(self) -> dict[str, Any]:
        """For the JSON sidecar."""
        return {"value": self.value, "shown": self.text, "note": self.note}


@dataclass(frozen=True)
class Sentence:
    """A statement and the numbers behind it.

    Attributes:
        text: the statement; words between backticks are shown as code.
        evidence: shown less prominently after it.
        values: the numbers, for the JSON sidecar.
    """

    text: str
    evidence: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """For the JSON sidecar."""
        return {"text": self.text, "evidence": self.evidence, "values": self.values}


Cell = str | Number | Sentence


def cell_parts(cell: Cell) -> tuple[str, str]:
    """Main text of a table cell, and the note beside it (empty without one)."""
    if isinstance(cell, str):
        return cell, ""
    return (cell.text, cell.note) if isinstance(cell, Number) else (cell.text, cell.evidence)


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    number: Number


@dataclass(frozen=True)
class Verdict:
    """The answer in words, before anything else.

    Attributes:
        headline: the answer in one sentence.
        tone: whether it is good news; the colour in HTML.
        tiles: headline numbers.
        sentences: what supports or qualifies the headline.
        advice: what to try next.
        caption: what the tiles show.
    """

    kind: ClassVar[str] = "verdict"
    headline: str
    tone: Tone
    tiles: Sequence[Tile]
    sentences: Sequence[Sentence]
    advice: Sequence[Sentence] = ()
    caption: str = ""

    def record(self) -> dict[str, Any]:
        """For the JSON sidecar."""
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
    """Rows of cells; a folded table is collapsed in HTML and left out of plain text."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    folded: bool = False

    def record(self) -> dict[str, Any]:
        """For the JSON sidecar."""
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
    """An SVG drawing of `data`, with axis numbers only; titles and legends are outside it."""

    kind: ClassVar[str] = "chart"
    title: str
    svg: Markup
    data: dict[str, Any]
    legend: Sequence[Legend] = ()
    note: str = ""
    name: str = ""

    def record(self) -> dict[str, Any]:
        """For the JSON sidecar."""
        return {"title": self.title, "name": self.name, "note": self.note, "data": self.data}


@dataclass(frozen=True)
class Charts:
    """Small charts side by side."""

    kind: ClassVar[str] = "charts"
    items: Sequence[Chart]

    def record(self) -> dict[str, Any]:
        """For the JSON sidecar."""
        return {"charts": [c.record() for c in self.items]}


@dataclass(frozen=True)
class Code:
    """A command or path to copy; never wrapped."""

    kind: ClassVar[str] = "code"
    caption: str
    text: str

    def record(self) -> dict[str, Any]:
        """For the JSON sidecar."""
        return {"caption": self.caption, "text": self.text}


@dataclass(frozen=True)
class Note:
    """A paragraph; words between backticks are shown as code."""

    kind: ClassVar[str] = "note"
    text: str

    def record(self) -> dict[str, Any]:
        """For the JSON sidecar."""
        return {"text": self.text}


@dataclass(frozen=True)
class TokenSpan:
    """One token: its text, its colour class and its tooltip."""

    text: str
    shade: str
    title: str
    index: int


@dataclass(frozen=True)
class ShownRollout:
    """One rollout of the token view.

    Attributes:
        title: which rollout.
        note: its step, advantage and length.
        prompt: of the rollout.
        spans: tokens that are shown: all of them, or those at both ends of a long completion.
        folded: the tokens between the two ends, shown on demand: of each the id, the advantage,
            the student's probability and the teacher's mass on the student's top k.
        details: what the panel shows for each of `spans`.
    """

    title: str
    note: str
    prompt: str
    spans: Sequence[TokenSpan]
    folded: Sequence[Sequence[float | None]]
    details: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Tokens:
    """Rollouts with every token coloured by the teacher's advantage.

    Attributes:
        items: rollouts.
        legend: of colours and hatching.
        texts: of token ids.
        note: what is shown.
        low: mass of the teacher on the student's top k below which a token is hatched.
        edges: nats at which the colours change.
    """

    kind: ClassVar[str] = "tokens"
    items: Sequence[ShownRollout]
    legend: Sequence[Legend]
    texts: dict[str, str]
    note: str
    low: float = 0.0
    edges: Sequence[float] = ()

    def panel(self) -> Markup:
        """Data for the script of the HTML page."""
        rollouts = [list(r.details) for r in self.items]
        folded = [list(r.folded) for r in self.items]
        data = {"texts": self.texts, "rollouts": rollouts, "folded": folded}
        return packed_json(data | {"low": self.low, "edges": list(self.edges)})

    def record(self) -> dict[str, Any]:
        """For the JSON sidecar."""
        return {
            "note": self.note,
            "legend": [entry.text for entry in self.legend],
            "token_texts": self.texts,
            "rollouts": [
                {
                    "title": r.title,
                    "note": r.note,
                    "prompt": r.prompt,
                    "folded": list(r.folded),
                    "tokens": list(r.details),
                }
                for r in self.items
            ],
        }


Part = Verdict | Table | Chart | Charts | Browse | Code | Note | Tokens


@dataclass(frozen=True)
class Section:
    """A heading and its parts; the heading of a document's first section is not shown."""

    name: str
    title: str
    parts: Sequence[Part]
    lead: str = ""


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: of the report.
        subtitle: shown beside the title.
        sections: in order; names are HTML anchors and keys of the sidecar, so they must differ.
        refresh_seconds: interval at which the HTML page reloads itself; None: never.
        source: where the numbers come from, for the footer.

    Raises:
        ValueError: two sections have the same name.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    refresh_seconds: int | None = None
    source: str = "the run folder alone"

    def __post_init__(self) -> None:
        names = [s.name for s in self.sections]
        if len(set(names)) < len(names):
            raise ValueError(f"sections share a name: {names}")

    def record(self) -> dict[str, Any]:
        """The JSON sidecar: every number and every text of the document."""
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
