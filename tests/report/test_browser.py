"""The page in a real browser: nothing leaves it, no script but ours runs, it fits its screen."""

from __future__ import annotations

import re

import pytest

from opd.commands.report import report
from support.browser import CHROMIUM, dump, measure, recording_proxy
from support.cdp import browser_page
from support.hostile_text import HOSTILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
MARK = "document.documentElement.dataset.pwned=1"


def armed(text: str) -> str:
    return text.replace("window.pwned=1", MARK).replace("parent.pwned=1", MARK)


@pytest.fixture
def hostile_page(make_run):
    everything = armed("\n".join(HOSTILE))
    return report(make_run(text=lambda field: f"{field} {everything}", sampled=True))


def test_hostile_text_sends_nothing_and_runs_nothing(hostile_page):
    with recording_proxy() as (flag, asked):
        text = dump(hostile_page, flag)
    assert not [path for path in asked if "evil" in path]
    assert "data-pwned" not in text
    assert " on" in text  # our own script ran: a token is selected
    assert '<aside class="panel" aria-label="The selected token">' in text


def test_the_two_checks_can_fail(tmp_path):
    page = tmp_path / "control.html"
    page.write_text(f"<script>{MARK}</script><img src='http://evil.example/a.png'>")
    with recording_proxy() as (flag, asked):
        text = dump(page, flag)
    assert "data-pwned" in text
    assert [path for path in asked if "evil" in path]


def test_policy_alone_stops_a_script_that_was_let_through(hostile_page):
    """Even if escaping failed somewhere, the page's policy would not run it."""
    html = hostile_page.read_text("utf-8").replace("<main>", f"<main><script>{MARK}</script>", 1)
    hostile_page.write_text(html, "utf-8")
    assert "data-pwned" not in dump(hostile_page)


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (768, 1024), (390, 844)])
def test_verdict_and_intervals_are_on_the_first_screen_and_nothing_overflows(
    make_run, width, height
):
    page = report(make_run())
    ends = measure(page, width, height, [".headline", ".tiles", ".tokens", ".chart svg"])
    assert ends[".tiles"][1] <= height
    assert 0 < ends[".headline"][1] < ends[".tiles"][1]
    assert ends["page"][0] <= width


@pytest.mark.parametrize("width", [1440, 390])
def test_hostile_text_does_not_break_the_width(hostile_page, width):
    assert measure(hostile_page, width, 900, [])["page"][0] <= width


def test_a_printed_report_is_on_a4_and_nothing_is_wider_than_the_paper(make_run, tmp_path):
    page = report(make_run())
    with browser_page() as tab:
        tab.open(page.as_uri())
        tab.print(tmp_path / "report.pdf")
        tab.call("Emulation.setEmulatedMedia", media="print")
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=696,  # A4 without its margins, at 96 dots per inch
            height=1000,
            deviceScaleFactor=1,
            mobile=False,
        )
        assert tab.run("document.documentElement.scrollWidth") <= 696
    boxes = re.findall(
        rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "report.pdf").read_bytes()
    )
    assert boxes
    assert {(round(float(w)), round(float(h))) for w, h in boxes} == {(595, 842)}


def test_the_panel_of_a_narrow_screen_leaves_the_chosen_token_in_view(make_run):
    page = report(make_run())
    with browser_page() as tab:
        tab.screen(390, 844)
        tab.open(page.as_uri())
        inside = tab.run(
            "(() => { const tokens = [...document.querySelectorAll('.rollout .t')];"
            "const panel = document.querySelector('.panel');"
            "return tokens.slice(0, 40).every((t) => { t.click();"
            "const a = t.getBoundingClientRect(), b = panel.getBoundingClientRect();"
            "return a.bottom <= b.top + 1 || a.top >= b.bottom - 1; }); })()"
        )
        assert inside
