"""Parts that other commands use: a check's page, a page of any sections, pictures."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest

from opd import config
from opd.core.stats import Estimate
from opd.errors import UserError
from opd.recipes.check.reasons import AGAINST
from opd.reports.check_page import check_document, number_table, overrides
from opd.reports.document import Document, Note, Section, Table, Verdict
from opd.reports.formatting import estimate
from opd.reports.html import render_html, write_report
from opd.reports.terminal import render_text
from support.hostile_text import HOSTILE
from support.html_reports import check_html

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


def texts(html: str) -> str:
    return " ".join(" ".join(check_html(html).text).split())


def test_a_page_of_any_sections_has_the_same_policy_and_its_sidecar(tmp_path):
    table = Table(
        "Teachers", ("teacher", "accuracy"), [["a", estimate(Estimate(0.5, 0.4, 0.6, 9))]]
    )
    sections = [
        Section("verdict", "", [Verdict("Take teacher a.", "good", [], [])]),
        Section("teachers", "Teachers", [table]),
    ]
    document = Document("lab", "", sections, source="the lab's runs")
    page = write_report(document, tmp_path / "new" / "lab.html")
    html = page.read_text("utf-8")
    text = texts(html)
    for words in ("Take teacher a.", "50.0% 40.0 to 60.0%", "from the lab's runs"):
        assert words.replace(" ", "") in text.replace(" ", "")
    sidecar = json.loads(page.with_suffix(".json").read_text("utf-8"))
    rows = sidecar["sections"]["teachers"]["parts"]
    assert rows[0]["rows"][0][1] == {"value": 0.5, "shown": "50.0%", "note": "40.0 to 60.0%"}


def test_a_go_that_something_speaks_against_does_not_say_that_nothing_does():
    reasons = ["Training is predicted to recover most", f"{AGAINST}the models are not compatible"]
    pages = (
        render_text(check_document({"verdict": "go", "reasons": reasons[:count]}))
        for count in (1, 2)
    )
    plain, marked = (" ".join(page) for page in pages)
    assert "nothing stands against" in plain
    assert "nothing stands against" not in marked
    assert "speaks against it" in marked


@pytest.mark.parametrize(
    ("label", "tone"), [("go", "good"), ("go with changes", "unclear"), ("don't", "bad")]
)
def test_a_check_shows_verdict_reasons_advice_and_numbers(label, tone):
    document = check_document(CHECK | {"verdict": label})
    assert document.sections[0].parts[0].tone == tone
    text = texts(render_html(document))
    for words in (
        "the teacher is ahead by 0.3",
        "Start shorter.",
        "set rollout.max_new_tokens=64 optim.lr=1e-06",
        "set 'coldstart={}'",
        "accuracy.student",
        "95% interval 0.125 to 0.5, n = 40",
    ):
        assert words in text


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"verdict": None, "reasons": "one", "advice": {"text": "x"}, "numbers": []},
        {"verdict": "perhaps", "reasons": [1, None], "numbers": {"a": None, "b": [1, 2]}},
    ],
)
def test_a_check_of_another_version_is_still_shown(record):
    assert "The check's verdict" in texts(render_html(check_document(record)))


def test_hostile_text_in_a_check_stays_text():
    text = " ".join(HOSTILE)
    record = {"verdict": text, "reasons": [text], "numbers": {text: text}}
    record["advice"] = [{"text": text, "set": {text: text}}]
    document = replace(check_document(record), title=text, subtitle=text, source=text)
    check_html(render_html(document))


def test_no_numbers_no_table():
    assert number_table({}) is None


def test_sections_of_one_name_are_refused():
    same = [Section("a", "A", [Note("x")]), Section("a", "B", [Note("y")])]
    with pytest.raises(ValueError, match="share a name"):
        Document("t", "", same)


def test_a_page_must_be_named_like_one_and_fit_on_the_disk(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.html"):
        write_report(Document("t", "", []), tmp_path / "compare.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(Document("t", "", []), tmp_path / "file" / "page.html")


def test_a_whole_check_is_printed_from_its_record():
    """Limitations, compatibility, quarters and cost, as `opd check` prints them."""
    teacher = {
        "name": "teacher",
        "compatibility": [{"level": "warning", "topic": "end", "message": "two", "fix": "set end"}],
        "by_quarter": {"overlap_mass": [0.9, 0.8, None, 0.25]},
        "forecast": {
            "change": {"value": 0.25, "low": 0.125, "high": 0.5},
            "recovery": {"value": 0.5, "low": 0.25, "high": 0.75},
            "out_of_range": ["reverse KL 9"],
        },
    }
    record = CHECK | {
        "teachers": [teacher],
        "limitations": ["No prompt has an answer."],
        "examples": [{"who": "The student", "prompt": "1+1", "answer": "2", "text": "3"}],
        "plan": {"steps": 80, "seconds": 7200.0, "memory": {"gradients": 2e9}, "check_share": 0.05},
        "seconds": 360.0,
    }
    text = " ".join(" ".join(render_text(check_document(record))).split())
    for words in (
        "predicted change +25.0 points (90% interval +12.5 to +50.0)",
        "predicted gap recovery 50.0% (90% interval 25 to 75%)",
        "- mass is low 0.61",
        "- No prompt has an answer.",
        "- Outside the range of the calibration runs: reverse KL 9.",
        "- Start shorter. set rollout.max_new_tokens=64 optim.lr=1e-06",
        "The student 1+1 2 3",
        "warning end two set end",
        "overlap_mass 0.9 0.8 null 0.25",
        "Cost of 80 steps time 2 h 0 min",
        "of it gradients 2 GB",
        "This check took 6 min 0 s, 5.0% of the run.",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    "keys",
    [
        {"coldstart": {"lr": 3e-4}},
        {"coldstart": {"lr": 3e-4, "completions": 256}, "train.steps": 80},
        {"loss.mode": "tail", "rollout.max_new_tokens": 64},
        {"prompts.template": "Q: {problem}\n'A': ", "coldstart": {}},
    ],
)
def test_advice_can_be_pasted_into_a_shell(keys):
    """`set coldstart=lr 0.0003` was no configuration."""
    words = shlex.split(overrides(keys))
    whole = {name: value for name, value in keys.items() if "." not in name}
    dotted = [f"{name}={json.dumps(value)}" for name, value in keys.items() if "." in name]
    assert config.overridden({}, words) == config.overridden(whole, dotted)
