"""Parts that other commands use: a check's page, a page of any sections, pictures."""

from __future__ import annotations

import json

import pytest

from opd.core.stats import Estimate
from opd.errors import UserError
from opd.reports.check_page import check_sections, number_table
from opd.reports.document import Note, Section, Table, Verdict
from opd.reports.formatting import estimate
from opd.reports.render import render_page, write_page

from .hostile import HOSTILE
from .test_injection import TAGS, check

CHECK = {
    "verdict": "go with changes",
    "reasons": ["the teacher is ahead by 0.3", {"text": "mass is low", "evidence": "0.61"}],
    "advice": [
        {"text": "Start shorter.", "set": {"rollout.max_new_tokens": 64, "optim.lr": 1e-6}},
        {"text": "Warm up.", "set": {"coldstart": {}}},
    ],
    "numbers": {
        "accuracy": {"student": {"value": 0.25, "low": 0.125, "high": 0.5, "n": 40}},
        "overlap_mass": 0.61,
        "seconds": 12,
    },
}


def texts(page: str, tags: set[str] = TAGS) -> str:
    return " ".join(" ".join(check(page, tags).text).split())


def test_a_page_of_any_sections_has_the_same_policy_and_its_twin(tmp_path):
    table = Table(
        "Teachers", ("teacher", "accuracy"), [["a", estimate(Estimate(0.5, 0.4, 0.6, 9))]]
    )
    sections = [
        Section("verdict", "", [Verdict("Take teacher a.", "good", [], [])]),
        Section("teachers", "Teachers", [table]),
    ]
    page = write_page(tmp_path / "new" / "lab.html", "lab", sections, source="the lab's runs")
    html = page.read_text("utf-8")
    found = texts(html, TAGS)
    for words in ("Take teacher a.", "50.0% 40.0 to 60.0%", "from the lab's runs"):
        assert words.replace(" ", "") in found.replace(" ", "")
    twin = json.loads(page.with_suffix(".json").read_text("utf-8"))
    rows = twin["sections"]["teachers"]["parts"]
    assert rows[0]["rows"][0][1] == {"value": 0.5, "shown": "50.0%", "note": "40.0 to 60.0%"}


@pytest.mark.parametrize(
    ("said", "tone"), [("go", "good"), ("go with changes", "unclear"), ("don't", "bad")]
)
def test_a_check_says_verdict_reasons_advice_and_numbers(said, tone):
    sections = check_sections(CHECK | {"verdict": said})
    assert sections[0].parts[0].tone == tone
    found = texts(render_page("check", sections))
    for words in (
        "the teacher is ahead by 0.3",
        "Start shorter.",
        "set rollout.max_new_tokens=64, optim.lr=1e-06",
        "set coldstart={}",
        "accuracy.student",
        "95% interval 0.125 to 0.5, n = 40",
    ):
        assert words in found


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"verdict": None, "reasons": "one", "advice": {"text": "x"}, "numbers": []},
        {"verdict": "perhaps", "reasons": [1, None], "numbers": {"a": None, "b": [1, 2]}},
    ],
)
def test_a_check_of_another_version_is_still_shown(record):
    assert "The check said" in texts(render_page("check", check_sections(record)))


def test_hostile_text_in_a_check_stays_text():
    text = " ".join(HOSTILE)
    record = {"verdict": text, "reasons": [text], "numbers": {text: text}}
    record["advice"] = [{"text": text, "set": {text: text}}]
    check(render_page(text, check_sections(record), subtitle=text, source=text))


def test_no_numbers_no_table():
    assert number_table({}) is None


def test_sections_of_one_name_are_refused():
    same = [Section("a", "A", [Note("x")]), Section("a", "B", [Note("y")])]
    with pytest.raises(ValueError, match="share a name"):
        render_page("t", same)


def test_a_page_must_be_named_like_one_and_fit_on_the_disk(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.html"):
        write_page(tmp_path / "compare.json", "t", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_page(tmp_path / "file" / "page.html", "t", [])
