"""One document, three formats: the same texts and numbers in HTML, on the terminal, in Markdown."""

from __future__ import annotations

import re

import numpy as np
import pytest
from markdown_it import MarkdownIt

from opd.core.stats import Estimate
from opd.reports.browse import Browse, BrowsedPrompt, BrowsedRow, BrowsedText
from opd.reports.document import (
    Chart,
    Charts,
    Code,
    Document,
    Note,
    Number,
    Section,
    Sentence,
    Table,
    Tile,
    Verdict,
)
from opd.reports.formatting import estimate
from opd.reports.html import render_html
from opd.reports.markdown import render_markdown
from opd.reports.plots import Line, curves
from opd.reports.terminal import WIDTH, render_text
from opd.reports.training_summary import training_summary
from support.everyday import everyday
from support.hostile_text import HOSTILE


def every_part(text=lambda field: field) -> Document:
    """A document with every kind of part but the token view."""
    x = np.arange(3.0)
    chart = Chart(text("chart"), curves("c", [Line(x, x)]), {}, name="c")
    cells = [text("cell"), Number(0.125, "0.125", text("interval")), Sentence(text("why"), "n = 4")]
    sections = [
        Section(
            "verdict",
            text("hidden heading"),
            [
                Verdict(
                    text("headline"),
                    "good",
                    [Tile(text("tile"), Number(0.5, "50%", "40 to 60%"))],
                    [Sentence(text("sentence"), text("evidence"))],
                    [Sentence(text("advice"))],
                    text("tiles"),
                )
            ],
        ),
        Section(
            "parts", text("heading"), [Table(text("table"), ("", "x", "y"), [cells], "note 7")]
        ),
        Section("charts", text("only drawings"), [Charts([chart])]),
        Section(
            "rest",
            text("rest"),
            [
                Note(text("paragraph")),
                Code(text("command"), text("opd train")),
                Browse(
                    "list",
                    text("browsed"),
                    "",
                    [text("before")],
                    [("fixed", text("fixed"))],
                    [("", "as they are")],
                    [BrowsedPrompt(0, text("prompt"), text("answer"))],
                    [BrowsedRow("0", 0, text("row"), ["fixed"], [BrowsedText("a", True, "")], {})],
                ),
            ],
            text("lead"),
        ),
    ]
    return Document(text("title"), text("subtitle"), sections)


FIELDS = (
    *(
        "title",
        "subtitle",
        "headline",
        "tile",
        "sentence",
        "evidence",
        "advice",
        "heading",
        "table",
    ),
    *("cell", "interval", "why", "rest", "lead", "paragraph", "command", "opd train", "browsed"),
    "fixed",
)


def test_every_text_and_number_is_in_each_format():
    document = every_part()
    formats = (render_html(document), "\n".join(render_text(document)), render_markdown(document))
    for rendered in formats:
        for words in (*FIELDS, "50%", "40 to 60%", "0.125", "n = 4", "note 7"):
            assert words in rendered, words
        assert "hidden heading" not in rendered


def test_a_section_of_drawings_alone_has_no_heading_without_html():
    assert "only drawings" not in "\n".join(render_text(every_part()))
    assert "![chart](c.png)" in render_markdown(every_part(), images={"c": "c.png"})
    assert "![" not in render_markdown(every_part())


def test_terminal_lines_are_wrapped_and_what_is_to_be_copied_is_not():
    path = "/a folder/" + "x" * 200
    words = "word " * 100
    document = Document(
        "",
        "",
        [
            Section("a", "", [Note(words), Code("Run folder", path)]),
            Section("b", "B", [Table("", ("", ""), [["a", words], ["long name", "1"]])]),
            Section("c", "C", [Table("", ("",), [["a"]], folded=True)]),
        ],
    )
    lines = render_text(document)
    assert f"Run folder: {path}" in lines
    assert max(len(line) for line in lines if path not in line) <= WIDTH
    first = next(line for line in lines if line.startswith("  a "))
    other = next(line for line in lines if line.startswith("  long name"))
    assert first.index("word") == other.index("1")  # columns are aligned
    assert "C" not in lines  # a folded table is left out


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_stays_text_on_the_terminal(text):
    lines = render_text(every_part(lambda field: f"{field} {text}[bold]b[/bold]"))
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069]", "".join(lines))
    assert "[bold]b[/bold]" in "".join(lines)


ALLOWED = {
    *("heading", "paragraph", "table", "thead", "tbody", "tr", "th", "td", "bullet_list"),
    *("list_item", "inline", "text", "fence", "code_inline", "strong"),
}


@pytest.mark.parametrize("text", everyday(HOSTILE, *range(0, 100, 3)), ids=range(len(HOSTILE)))
def test_hostile_text_stays_text_in_markdown(text):
    """A CommonMark parser finds the elements of a harmless document and no others."""
    parse = MarkdownIt("commonmark").enable("table").parse
    kinds = [
        re.sub("_(open|close)$", "", token.type)
        for block in parse(render_markdown(every_part(lambda field: f"{field} {text}")))
        for token in (block, *(block.children or ()))
    ]
    assert set(kinds) <= ALLOWED, set(kinds) - ALLOWED
    harmless = parse(render_markdown(every_part()))
    blocks = parse(render_markdown(every_part(lambda field: f"{field} {text}")))
    assert [b.type for b in blocks] == [b.type for b in harmless]


def test_the_summary_of_a_run_has_every_interval_and_the_recovered_gap():
    intervals = {"before": (0.2, 0.1, 0.3), "after": (0.6, 0.5, 0.7), "teacher": (0.8, 0.7, 0.9)}
    entry = {
        label: dict(zip(("value", "low", "high"), e, strict=True)) for label, e in intervals.items()
    }
    entry |= {"change": {"value": 0.4, "low": 0.3, "high": 0.5}}
    entry |= {"gap_recovery": {"value": 2 / 3, "low": 0.5, "high": 0.8}}
    entry = {label: numbers | {"n": 30} for label, numbers in entry.items()}
    summary = {"run": "runs/first", "steps": 20, "sets": {"sum": entry}}
    text = " ".join(" ".join(render_text(training_summary(summary))).split())
    for label, numbers in intervals.items():
        shown = estimate(Estimate(*numbers, 30))
        assert f"{label} {shown.text} ({shown.note})" in text
    assert "+40.0 points (95% interval +30.0 to +50.0: better)" in text
    assert "66.7% of the gap to the teacher was recovered (50.0 to 80.0%)." in text
    assert "Final student: runs/first/final" in text
    summary["sets"]["sum"]["gap_recovery"] = None
    assert "no gap to recover" in " ".join(render_text(training_summary(summary)))
