"""Text of models, servers and files stays text: in HTML, its sidecar, the terminal, the card."""

from __future__ import annotations

import json
import re

import pytest
from rich.console import Console

from opd.commands.report import compare, report
from opd.commands.watch import watch
from opd.reports.chat_turns import readable_prompt
from opd.reports.html import TEMPLATES, render_html
from opd.reports.read import read_run
from opd.reports.run_page import run_document
from opd.reports.sanitize import for_terminal, visible
from support.hostile_text import HOSTILE
from support.html_reports import browsed, check_html, texts_of

FIELDS = (
    *("student", "question", "truth", "answer-0", "prompt", "token1"),
    *("message", "alarm", "seen", "remedy", "acted"),
    *("reason", "advice", "key", "number"),
)
# What would not show, or would change the order of letters.
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069\ufeff\ue000\U000e0041]"
)


def bare(text: str) -> str:
    """Without backticks, which set words of a sentence as code."""
    return text.replace("`", "")


def few() -> dict:
    """Two charts are enough where the text around them is what matters."""
    return {"train/loss": lambda s: 1 / s, "train/tokens": lambda s: 100.0}


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_each_hostile_text_in_every_field_stays_text(make_run, text):
    path = make_run(text=lambda field: f"{field} {text}", sampled=True, series=few(), steps=6)
    html = render_html(run_document(read_run(path)))
    joined = bare("".join([*check_html(html).text, *texts_of(browsed(html))]))
    for field in FIELDS:
        for part in parts_of(field, f"{field} {text}"):
            assert bare(visible(part)) in joined, field
    assert not UNSEEN.search(html)


def parts_of(field: str, text: str) -> list[str]:
    """What stands together on the page: a prompt's beginning is folded, a key is quoted."""
    if field == "key":
        return text.split("'")
    shown = readable_prompt(text)
    return [shown.start, shown.question] if field in ("question", "prompt") else [text]


def test_all_hostile_texts_in_every_field_stay_text(make_run):
    everything = " ".join(HOSTILE)
    path = make_run(text=lambda field: f"{field} {everything}", series=few(), steps=6)
    html = report(path).read_text("utf-8")
    joined = bare("".join([*check_html(html).text, *texts_of(browsed(html))]))
    for field in FIELDS:
        if not field.startswith("answer"):  # long answers are shortened
            for part in parts_of(field, f"{field} {everything}"):
                assert bare(visible(part)) in joined, field
    assert not UNSEEN.search(html)
    data = (path / "report.json").read_bytes()
    assert data.isascii()
    shown = json.loads(data)["sections"]["accuracy"]["parts"][-1]["prompts"][0]["text"]
    assert shown == f"question {everything}"


def test_hostile_text_in_the_compare_document(make_run, tmp_path):
    everything = " ".join(HOSTILE)
    paths = [
        make_run(n, text=lambda p, n=n: f"{p} {n} {everything}", series=few(), steps=6)
        for n in ("a", "b")
    ]
    page = compare(paths, tmp_path / "compare.html")
    check_html(page.read_text("utf-8"))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_nothing_reaches_the_terminal_but_letters(text):
    assert not re.search(
        r"[\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u2069]", for_terminal(text)
    )


def test_terminal_commands_are_removed_whole():
    dirty = "a\x1b[31mb\x1b]0;title\x07c\x1b]8;;https://evil.example\x1b\\d\x9b2Je"
    assert for_terminal(dirty) == "abcde"


def test_watch_prints_hostile_runs_as_letters(make_run, capsys):
    path = make_run(text=lambda field: f"{field} {HOSTILE[54]}[bold]markup[/bold]")
    watch(path, console=Console(highlight=False, width=200, force_terminal=False))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[bold]markup[/bold]" in out  # rich markup in a message is text


def test_the_only_inline_script_is_ours_and_quiet_about_html():
    script = (TEMPLATES / "tokens.js").read_text("utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval", "fetch"):
        assert word not in script
