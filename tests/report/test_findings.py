"""The report and the alarms cannot disagree: one set of rules, recorded or replayed."""

from __future__ import annotations

import json

import pytest

from opd.alarms import RULES, replay
from opd.config import Alarms
from opd.reports.findings import MAX_ALARMS
from opd.reports.read import read_run
from opd.reports.run_page import run_document
from opd.reports.verdict import verdict
from opd.run.folder import RunFolder
from support.everyday import everyday
from support.run_folders import good_run

OFF = {"alarms": {"action": "off"}}
NOTHING = "Nothing in the metrics shows what limits"
BY_NAME = {rule.name: rule for rule in RULES}

# A trend of a run whose accuracy rose, and the alarms that it raises.
TRENDS = [
    ({}, set()),
    ({"rollout/truncated": lambda s: 0.0 if s < 9 else 0.17}, {"truncation"}),
    ({"rollout/repetition": lambda s: 0.0 if s < 9 else 0.15}, {"repetition"}),
    ({"diag/overlap_mass_student": lambda s: 0.999 if s < 9 else 0.96}, {"overlap-mass-falling"}),
    ({"diag/entropy_gap_abs": lambda s: 0.1 * s}, {"entropy-gap-open"}),
    (
        {"diag/reverse_kl": lambda s: 0.01, "diag/student_entropy": lambda s: 1.0},
        {"nothing-to-learn"},
    ),
    # Levels, without any trend: no alarm, whatever the level.
    ({"rollout/truncated": lambda s: 0.25}, set()),
    ({"diag/overlap_mass_student": lambda s: 0.9}, set()),
    ({"diag/overlap_ratio": lambda s: 0.78}, set()),
    # Small in nats, but not beside the student's entropy.
    ({"diag/reverse_kl": lambda s: 0.045, "diag/student_entropy": lambda s: 0.2}, set()),
]


def unmonitored(make_run, name: str = "run", **trend):
    """A run whose alarms were off: it recorded none."""
    return make_run(name, series=good_run() | trend, alarm_steps=(), settings=OFF)


@pytest.mark.parametrize(("trend", "names"), everyday(TRENDS, 0, 3, 6, 9))
def test_the_report_calls_a_run_healthy_if_and_only_if_the_alarms_do(make_run, trend, names):
    run = read_run(unmonitored(make_run, **trend))
    assert {a.name for a in replay(run.metrics, Alarms(), run.planned)} == names
    result = verdict(run)
    assert any(NOTHING in s.text for s in result.sentences) == (not names)
    sentences = {s.values["alarm"]: s for s in result.sentences if "alarm" in s.values}
    assert sentences.keys() == names
    for name in names:
        rule = BY_NAME[name]
        assert sentences[name].text.endswith(rule.message)
        assert (sentences[name].text == rule.message) != rule.denies_gain  # accuracy rose
        assert "replayed from the metrics" in sentences[name].evidence
        assert (rule.remedy in [a.text for a in result.advice]) != rule.denies_gain


def test_an_alarm_never_contradicts_the_verdict(make_run):
    """As `opd demo --steps 200` did: 17.8 to 95.1 %, and "worse than no teacher" as advice."""
    path = make_run(accuracy={0: 0.2, 20: 0.9}, alarm_steps=())
    rule = BY_NAME["reverse-distillation"]
    record = {"step": 9, "name": rule.name, "message": rule.message, "remedy": rule.remedy}
    with (path / "alarms.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record | {"evidence": {"echo_start": 0.98}, "action": "warn"}) + "\n")
    result = verdict(read_run(path))
    assert result.tone == "good"
    assert rule.remedy not in [advice.text for advice in result.advice]
    (sentence,) = [s for s in result.sentences if "alarm" in s.values]
    assert "did not bear out" in sentence.text


def test_recorded_alarms_are_shown_as_the_replayed_ones(make_run):
    trend = {"rollout/truncated": lambda s: 0.0 if s < 9 else 0.17}
    replayed = read_run(unmonitored(make_run, "off", **trend))
    recorded_path = make_run("on", series=good_run() | trend, alarm_steps=())
    rows = read_run(recorded_path).metrics
    settings = json.loads((recorded_path / "config.json").read_text("utf-8"))
    with RunFolder.create(recorded_path, settings, resume=True) as folder:
        for alarm in replay(rows, Alarms(), 20):
            folder.log_alarm(alarm.record())
    recorded = read_run(recorded_path)
    assert (recorded.replayed, replayed.replayed) == (False, True)
    assert recorded.alarms == replayed.alarms != []


def test_a_run_that_was_monitored_is_not_replayed(make_run):
    """Its record is complete: thresholds and window of the day are those it ran with."""
    path = make_run(series=good_run() | {"rollout/truncated": lambda s: 0.05 * s}, alarm_steps=())
    run = read_run(path)
    assert (run.alarms, run.replayed) == ([], False)


@pytest.mark.parametrize("config", [{}, {"alarms": {"window": "of another version"}}])
def test_a_run_of_a_version_without_these_rules_is_replayed(make_run, config):
    path = make_run(series=good_run() | {"rollout/truncated": lambda s: 0.05 * s}, alarm_steps=())
    file = path / "config.json"
    settings = json.loads(file.read_text("utf-8"))
    del settings["alarms"]
    file.write_text(json.dumps(settings | config))
    run = read_run(path)
    assert [alarm.name for alarm in run.alarms] == ["truncation"]
    assert run.replayed


def test_a_rule_that_was_switched_off_by_name_stays_off(make_run):
    off = {"alarms": {"action": "off", "rules": {"truncation": {"action": "off"}}}}
    trend = {"rollout/truncated": lambda s: 0.05 * s}
    run = read_run(make_run(series=good_run() | trend, alarm_steps=(), settings=off))
    assert (run.alarms, run.replayed) == ([], True)


def test_the_table_says_that_alarms_are_replayed(make_run):
    run = read_run(unmonitored(make_run, **{"rollout/truncated": lambda s: 0.05 * s}))
    (table,) = (
        part
        for part in run_document(run).record()["sections"]["picture"]["parts"]
        if part.get("caption") == "Alarms"
    )
    assert "were off: the rules were replayed" in table["note"]
    assert table["rows"][0][4] == "alarms were off"


def test_the_verdict_names_the_first_kinds_of_alarms_and_counts_the_rest(make_run):
    path = make_run(alarm_steps=())
    with (path / "alarms.jsonl").open("a", encoding="utf-8") as file:
        for step in range(1, MAX_ALARMS + 3):
            file.write(json.dumps({"step": step, "name": f"rule-{step}", "message": "m"}) + "\n")
    sentences = [s for s in verdict(read_run(path)).sentences if "alarm" in str(s.values)]
    assert [s.values.get("alarm") for s in sentences] == [
        *(f"rule-{step}" for step in range(1, MAX_ALARMS + 1)),
        None,
    ]
    assert sentences[-1].text.startswith("2 more kinds of alarms")


def test_skipped_updates_are_a_finding(make_run):
    refused = good_run() | {"train/refused": lambda s: 1.0 if s in (3, 4) else float("nan")}
    text = " ".join(s.text for s in verdict(read_run(make_run(series=refused))).sentences)
    assert "2 updates were skipped because the loss or the gradient was not finite" in text
