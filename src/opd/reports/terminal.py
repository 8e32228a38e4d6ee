"""A document as lines of plain text, for a terminal, a pipe or a log file.

Charts, token views and folded tables are left out: they need HTML. Text of models and servers
cannot control the terminal: terminal commands and invisible characters are removed from every text.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from opd.reports.browse import Browse
from opd.reports.document import (
    Cell,
    Code,
    Document,
    Note,
    Part,
    Section,
    Sentence,
    Table,
    Verdict,
    cell_parts,
)
from opd.reports.sanitize import for_terminal

WIDTH = 96  # columns
INDENT = "  "


def render_text(document: Document, width: int = WIDTH) -> list[str]:
    """The document as lines of plain text without colours.

    Sections of which nothing can be shown as text are left out, and so is an empty title.

    Args:
        document: to render.
        width: columns at which text is wrapped; what is to be copied (`Code`) never is.
    """
    title = " \u00b7 ".join(filter(None, (document.title, document.subtitle)))
    lines = [for_terminal(title)] if title else []
    for index, section in enumerate(document.sections):
        body = list(_section(section, width))
        if body:
            heading = [] if index == 0 or not section.title else [for_terminal(section.title)]
            lines += [*([""] if lines else []), *heading, *body]
    return lines


def _section(section: Section, width: int) -> Iterator[str]:
    body = [line for part in section.parts for line in _part(part, width)]
    if body and section.lead:
        yield from _wrapped(section.lead, width)
    yield from body


def _part(part: Part, width: int) -> Iterator[str]:
    match part:
        case Verdict():
            yield from _verdict(part, width)
        case Table() if not part.folded:
            yield from _wrapped(part.caption, width)
            yield from _table(part.columns, part.rows, width)
            yield from _wrapped(part.note, width)
        case Browse():
            yield from _wrapped(part.title, width)
            counts = ", ".join(f"{label} {count:,}" for label, count in part.counts())
            yield from _wrapped(counts, width, first=INDENT, rest=INDENT)
        case Code():
            yield from _code(part)
        case Note():
            yield from _wrapped(part.text, width)
        case _:
            return


def _verdict(verdict: Verdict, width: int) -> Iterator[str]:
    yield from _wrapped(verdict.headline, width)
    if verdict.tiles:
        yield from _wrapped(verdict.caption, width)
        yield from _table(("", ""), [(t.label, t.number) for t in verdict.tiles], width)
    for sentence in verdict.sentences:
        yield from _bullet(sentence, width)
    if verdict.advice:
        yield "What to try next"
        for sentence in verdict.advice:
            yield from _bullet(sentence, width)


def _bullet(sentence: Sentence, width: int) -> Iterator[str]:
    yield from _wrapped(sentence.text, width, first="- ", rest=INDENT)
    yield from _wrapped(sentence.evidence, width, first=INDENT, rest=INDENT)


def _code(code: Code) -> Iterator[str]:
    lines = [for_terminal(line) for line in code.text.splitlines()] or [""]
    if len(lines) == 1:
        yield f"{for_terminal(code.caption)}: {lines[0]}"
        return
    yield f"{for_terminal(code.caption)}:"
    yield from (INDENT + line for line in lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], width: int) -> Iterator[str]:
    """Aligned columns; cells that do not fit are wrapped within their column."""
    table = RichTable(
        box=box.SIMPLE_HEAD if any(columns) else None,
        show_header=any(columns),
        show_edge=False,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for column in columns:
        table.add_column(Text(for_terminal(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_inline(cell)) for cell in row))
    sink = io.StringIO()
    Console(file=sink, width=width - len(INDENT), color_system=None, legacy_windows=False).print(
        table
    )
    yield from ((INDENT + line).rstrip() for line in sink.getvalue().splitlines())


def _inline(cell: Cell) -> str:
    """A cell in one line, its note in parentheses."""
    text, note = map(for_terminal, cell_parts(cell))
    return f"{text} ({note})" if text and note else text or note


def _wrapped(text: str, width: int, *, first: str = "", rest: str = "") -> list[str]:
    """Lines of a paragraph, none for an empty one; long words such as paths stay whole."""
    return textwrap.wrap(
        for_terminal(text),
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
