"""The report page by keyboard and mouse: lists, links to a row, tokens, the size of a long run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from opd.commands.report import report
from opd.reports import token_view
from support.browser import CHROMIUM
from support.cdp import browser_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
AXE = os.environ.get("OPD_AXE")  # a file: axe.min.js of the package axe-core


@pytest.fixture(scope="module")
def tab():
    with browser_page() as page:
        page.screen(1440, 1000)
        yield page


def count(tab) -> int:
    return tab.run("document.querySelectorAll('#answers-task .rows > li').length")


def test_answers_are_filtered_searched_sorted_and_linked(make_run, tab):
    def text(field):
        return "a needle" if field == "answer-20" else field

    page = report(make_run(accuracy={0: 0.2, 20: 0.8}, text=text))
    tab.open(page.as_uri())
    assert count(tab) == 10  # of 60
    for shown in (50, 60):
        tab.point("#answers-task .more", click=True)
        assert count(tab) == shown
    tab.point("#answers-task [data-tag=fixed]", click=True)
    assert count(tab) == 10
    tab.point("#answers-task .more", click=True)
    assert count(tab) == 36
    assert tab.run("document.querySelector('#answers-task [data-tag=fixed]').ariaPressed") == "true"
    tab.run("document.querySelector('#answers-task input').focus()")
    tab.type("NEEDLE")
    tab.point("#answers-task .more", click=True)
    assert count(tab) == 36
    tab.run("document.querySelector('#answers-task input').focus()")
    tab.type("s in a haystack")
    assert count(tab) == 0
    tab.open(f"{page.as_uri()}#answers-task-29-1")
    assert tab.run("document.activeElement.ariaExpanded") == "true"
    assert "a needle" in tab.run("document.getElementById('answers-task-29-1').textContent")
    tab.key("ArrowUp")
    assert tab.run("document.activeElement.closest('li').id") == "answers-task-29-0"
    tab.key("Enter")
    assert tab.run("document.activeElement.ariaExpanded") == "true"


def selected(tab) -> int:
    script = "[...document.querySelectorAll('.rollout .t')].findIndex(t => t.ariaSelected)"
    return tab.run(script)


def test_tokens_are_pinned_by_click_and_walked_by_keyboard(make_run, tab):
    tab.open(report(make_run()).as_uri())
    tab.point(".rollout .t:nth-of-type(2)", click=True)
    assert selected(tab) == 1
    tab.point(".rollout .t:nth-of-type(4)")
    assert selected(tab) == 1  # pinned: the mouse alone selects nothing
    tab.key("ArrowRight")
    assert selected(tab) == 2
    tab.key("End")
    assert selected(tab) == 5
    tab.key("Home")
    assert selected(tab) == 0
    tab.key("Escape")
    tab.point(".rollout .t:nth-of-type(3)")  # the mouse is on the fourth already
    tab.point(".rollout .t:nth-of-type(4)")
    assert selected(tab) == 3


def test_all_tokens_of_a_long_rollout_can_be_reached(make_run, tab, monkeypatch):
    monkeypatch.setattr(token_view, "END_TOKENS", 2)
    tab.open(report(make_run()).as_uri())
    tokens = "document.querySelector('.rollout').querySelectorAll('.t').length"
    assert tab.run(tokens) == 4
    tab.run("document.querySelector('.rollout .more').focus()")
    tab.key("Enter")
    assert tab.run(tokens) == 6
    assert selected(tab) == 2  # the first of them
    assert tab.run("document.querySelector('.panel').textContent").startswith("unpin") is False
    assert "Token 3:" in tab.run("document.querySelector('.panel').textContent")


@pytest.mark.skipif(not AXE, reason="OPD_AXE names no copy of axe.min.js")
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_has_nothing_to_say(make_run, tab, width):
    tab.screen(width, 900)
    tab.open(report(make_run()).as_uri())
    tab.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    tab.run("document.querySelectorAll('.rows .head')[0].click()")
    found = tab.violations(Path(AXE).read_text("utf-8"))
    tab.screen(1440, 1000)
    assert not found
