"""A document as Markdown: for model cards and pages of documentation.

Text of models, servers and files stays text: what Markdown would interpret is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from opd.reports.browse import Browse
from opd.reports.document import (
    Cell,
    Chart,
    Charts,
    Code,
    Document,
    Note,
    Part,
    Sentence,
    Table,
    Verdict,
    cell_parts,
)
from opd.reports.sanitize import for_terminal

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
_BLOCK_START = re.compile(r"^([-=])")  # of a rule, a list or an underlined heading


def render_markdown(document: Document, images: Mapping[str, str] | None = None) -> str:
    """The document as Markdown; token views are left out.

    Args:
        document: to render.
        images: path of an image by `Chart.name`; charts without one are left out.
    """
    blocks = [f"# {escaped(document.title)}"] if document.title else []
    blocks += [escaped(document.subtitle)] if document.subtitle else []
    for index, section in enumerate(document.sections):
        if index and section.title:
            blocks.append(f"## {escaped(section.title)}")
        if section.lead:
            blocks.append(escaped(section.lead))
        for part in section.parts:
            blocks += _part(part, images or {})
    return "\n\n".join(blocks) + "\n"


def escaped(text: str) -> str:
    """Text as words of one line of Markdown."""
    return _BLOCK_START.sub(r"\\\1", _SPECIAL.sub(r"\\\1", for_terminal(text)))


def code_span(text: str) -> str:
    """Text between backticks, as code that also fits in a table cell.

    Backticks and vertical bars inside it are replaced by letters that look like them.
    """
    return f"`{for_terminal(text).replace('`', chr(0x2B9)).replace('|', chr(0xA6))}`"


def _part(part: Part, images: Mapping[str, str]) -> Iterator[str]:
    match part:
        case Verdict():
            yield from _verdict(part)
        case Table():
            yield from _table(part)
        case Chart():
            yield from _charts([part], images)
        case Charts():
            yield from _charts(part.items, images)
        case Browse():
            yield f"### {escaped(part.title)}"
            yield _rows([("", ""), *((label, f"{count:,}") for label, count in part.counts())])
        case Code():
            yield from _paragraph(part.caption)
            yield _fenced(part.text)
        case Note():
            yield _with_code(part.text)
        case _:
            return


def _verdict(verdict: Verdict) -> Iterator[str]:
    yield f"**{escaped(verdict.headline)}**"
    if verdict.tiles:
        yield from _paragraph(verdict.caption)
        yield _rows([("", ""), *((tile.label, tile.number) for tile in verdict.tiles)])
    if verdict.sentences:
        yield "\n".join(f"- {_inline(sentence)}" for sentence in verdict.sentences)
    if verdict.advice:
        yield "What to try next:"
        yield "\n".join(f"- {_inline(sentence)}" for sentence in verdict.advice)


def _table(table: Table) -> Iterator[str]:
    if table.caption:
        yield f"### {escaped(table.caption)}"
    yield _rows([table.columns, *table.rows])
    yield from _paragraph(table.note)


def _rows(rows: Sequence[Sequence[Cell]]) -> str:
    """A table whose first row is its header."""
    lines = [f"| {' | '.join(map(_inline, row))} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _charts(charts: Sequence[Chart], images: Mapping[str, str]) -> Iterator[str]:
    for chart in charts:
        if chart.name in images:
            yield f"![{escaped(chart.title)}]({images[chart.name]})"
            yield from _paragraph(chart.note)


def _inline(cell: Cell) -> str:
    """A cell in one line, its note in parentheses; in a `Sentence`, backticks mark code."""
    text, note = cell_parts(cell)
    shown = _with_code(text) if isinstance(cell, Sentence) else escaped(text)
    return f"{shown} ({escaped(note)})" if shown and note else shown or escaped(note)


def _with_code(text: str) -> str:
    pieces = text.split("`")
    return "".join(code_span(p) if i % 2 else escaped(p) for i, p in enumerate(pieces))


def _paragraph(text: str) -> list[str]:
    return [escaped(text)] if text else []


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks inside it."""
    lines = [for_terminal(line) for line in text.splitlines()]
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([fence, *lines, fence])
