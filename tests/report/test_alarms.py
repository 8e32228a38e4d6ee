"""Alarms and phases: every form of the journal's lines, in the report and in the terminal."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from opd.commands.watch import watch
from opd.reports.alarm_log import alarm_texts, first_steps, is_phase, phases
from opd.reports.charts import marks
from opd.reports.read import read_run
from opd.reports.run_page import run_document
from opd.reports.verdict import verdict

FULL = {
    "step": 7,
    "name": "overlap mass falling",
    "message": "It fell.",
    "evidence": {"last_fifth": 0.5, "first": 0.75},
    "remedy": "Use loss.mode=tail.",
    "action": "tail bucket on",
}


def test_a_full_line_keeps_every_word():
    (alarm,) = alarm_texts([FULL])
    assert (alarm.step, alarm.name, alarm.message) == (7, "overlap mass falling", "It fell.")
    assert alarm.evidence == "last_fifth 0.5, first 0.75"
    assert (alarm.remedy, alarm.intervention) == ("Use loss.mode=tail.", "tail bucket on")


@pytest.mark.parametrize(
    ("record", "evidence"),
    [
        ({"step": 1}, ""),
        ({"step": 1, "name": "x", "evidence": "as it is"}, "as it is"),
        ({"step": 1, "name": "x", "evidence": [0.5, None, "b"]}, "0.5, b"),
        ({"step": 1, "name": "x", "value": 0.25, "action": "warn"}, "value 0.25"),
        ({"step": 1, "name": "x", "action": "warn: there is nothing it can do"}, ""),
        ({"step": 1, "alarm": "older name", "evidence": None}, ""),
    ],
)
def test_lines_of_other_versions_are_alarms_too(record, evidence):
    (alarm,) = alarm_texts([record])
    assert alarm.evidence == evidence
    assert alarm.intervention == ""


def test_an_alarm_that_stopped_the_run_says_so():
    assert alarm_texts([FULL | {"action": "stop"}])[0].intervention == "stopped the run"


def test_an_alarm_that_goes_on_is_marked_once():
    names = {1: "a", 2: "a", 3: "b", 4: "a"}
    alarms = alarm_texts([{"step": s, "name": n} for s, n in names.items()])
    assert first_steps(alarms) == [1, 3, 4]


def test_phases_come_from_either_journal():
    lines = [{"step": s, "phase": "cold start" if s < 5 else "opd"} for s in range(1, 9)]
    lines.append({"step": 9, "phase": "late"})
    assert is_phase(lines[-1])
    assert not is_phase(FULL | {"phase": "opd"})
    assert phases(lines[::-1]) == [(1, "cold start"), (5, "opd"), (9, "late")]


def test_page_marks_curves_and_lists_remedies(make_run):
    run = read_run(make_run())
    assert marks(run).alarms == [5, 12]
    assert marks(run).phases == [4]
    sidecar = run_document(run).record()
    table = next(p for p in sidecar["sections"]["picture"]["parts"] if p.get("caption") == "Alarms")
    assert [row[0]["value"] for row in table["rows"]] == [5, 6, 12]
    assert table["rows"][0][2]["evidence"] == "seen 0.625"
    assert table["rows"][0][3:] == ["remedy", "acted"]
    result = verdict(run)
    (sentence,) = (s for s in result.sentences if s.text == "message")
    evidence = "alarm alarm, first at step 5, 3 times: seen 0.625; at step 5: acted"
    assert sentence.evidence == evidence
    assert sentence.values == {"alarm": "alarm", "steps": [5, 6, 12]}
    assert result.advice[0].text == "remedy"
    legends = [e.text for s in run_document(run).sections for p in s.parts if p.kind == "charts"
               for c in p.items for e in c.legend]  # fmt: skip
    assert "alarm begins" in legends
    assert "phase from step 4" in legends


def test_watch_shows_alarm_remedy_and_phase(make_run, capsys):
    watch(make_run(), console=Console(highlight=False, width=200, force_terminal=False))
    out = capsys.readouterr().out
    assert "alarm at step 12: alarm" in out
    assert "Remedy: remedy" in out


@pytest.mark.parametrize("text", ["[1]", "{", ""])
def test_a_damaged_check_is_named_and_left_out(make_run, text):
    path = make_run()
    (path / "check.json").write_text(text)
    run = read_run(path)
    assert run.check is None
    assert any("check.json" in gap for gap in run.problems)
    (path / "check.json").write_text(json.dumps({"verdict": "go"}))
    assert read_run(path).check == {"verdict": "go"}
