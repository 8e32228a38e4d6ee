"""The verdict says what the numbers support, no more."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from opd.reports.read import read_run
from opd.reports.verdict import verdict


def verdict_of(path):
    result = verdict(read_run(path))
    return result, " ".join(s.text for s in (*result.sentences, *result.advice))


@pytest.mark.parametrize(
    ("accuracy", "teacher", "tone", "words"),
    [
        ({0: 0.2, 20: 0.8}, 0.9, "good", "It worked: most of the gap"),
        ({0: 0.2, 20: 0.5}, 0.9, "good", "It helped: part of the gap"),
        ({0: 0.5, 20: 0.5}, 0.9, "unclear", "No measurable change"),
        ({0: 0.8, 20: 0.2}, 0.9, "bad", "It made the student worse"),
        ({0: 0.5}, 0.9, "unclear", "The student moved towards the teacher"),
    ],
)
def test_headline_follows_the_paired_interval(make_run, accuracy, teacher, tone, words):
    result, _ = verdict_of(make_run(accuracy=accuracy, teacher=teacher))
    assert (result.tone, result.headline[: len(words)]) == (tone, words)


def test_numbers_of_the_tiles_are_those_of_the_evaluations(make_run):
    result, _ = verdict_of(make_run(accuracy={0: 0.2, 20: 0.8}, teacher=0.9))
    values = {tile.label: tile.number.value for tile in result.tiles}
    assert values["before"] == pytest.approx(0.2)
    assert values["after 20 steps"] == pytest.approx(0.8)
    assert values["of the gap recovered"] == pytest.approx(0.6 / 0.7)


def test_a_gap_not_measured_yet_is_not_called_absent(make_run):
    result, _ = verdict_of(make_run(accuracy={0: 0.2}, teacher=0.9, planned=40))
    assert result.tiles[-1].number.note == "not known before the next evaluation"
    result, _ = verdict_of(make_run("level", accuracy={0: 0.8, 20: 0.8}, teacher=0.7))
    assert result.tiles[-1].number.note == "the teacher was not ahead"


def test_a_worse_teacher_is_named(make_run):
    _, text = verdict_of(make_run(accuracy={0: 0.8, 20: 0.4}, teacher=0.3))
    assert "The teacher was worse than the student" in text
    assert "Choose a teacher that is ahead" in text


def test_still_rising_needs_a_paired_rise_at_the_end(make_run):
    _, text = verdict_of(make_run("up", accuracy={0: 0.2, 10: 0.4, 20: 0.8}))
    assert "still rising" in text
    _, text = verdict_of(make_run("flat", accuracy={0: 0.2, 10: 0.8, 20: 0.8}))
    assert "still rising" not in text


def test_a_run_that_stopped_says_so(make_run):
    _, text = verdict_of(make_run(planned=100))
    assert "stopped early, after 20 of 100 steps" in text
    assert "`opd train ... --resume`" in text


@pytest.mark.parametrize(
    ("kept", "after", "words"),
    [
        (10, 0.6, "student of step 10, the best so far, is kept"),
        (0, 0.2, "student of step 0, the best so"),
        (20, 0.3, "student of step 20 is kept"),  # best or not: without a held-out set it is last
    ],
)
def test_a_run_that_an_alarm_ended_is_about_the_student_it_kept(make_run, kept, after, words):
    path = make_run(accuracy={0: 0.2, 10: 0.6, 20: 0.3}, planned=100)
    stopped = {"step": 20, "name": "accuracy-falling", "message": "It fell.", "action": "stop"}
    (path / "summary.json").write_text(json.dumps({"steps": kept, "stopped": stopped}))
    result, text = verdict_of(path)
    assert read_run(path).evals[0].final.accuracy.value == pytest.approx(after)
    assert "The alarm accuracy-falling stopped the run after 20 of 100 steps" in text
    assert words in text
    assert "--resume" not in text
    assert ("untouched student is kept" in result.headline) == (kept == 0)


def test_a_summary_from_before_a_resume_is_not_believed(make_run):
    path = make_run(accuracy={0: 0.2, 10: 0.6, 20: 0.3})
    stopped = {"step": 12, "name": "accuracy-falling", "action": "stop"}
    (path / "summary.json").write_text(json.dumps({"steps": 10, "stopped": stopped}))
    run = read_run(path)
    assert (run.stopped_by, run.kept_step) == (None, None)
    assert run.evals[0].final.step == 20


def test_a_first_evaluation_in_the_middle_of_a_run_is_not_called_before(good):
    """A set that was changed when the run was resumed: what compares with its last begins there."""
    run = read_run(good)
    (first, *others) = run.evals[0].student
    task = replace(run.evals[0], student=[replace(first, step=10), *others])
    result = verdict(replace(run, evals=[task]))
    assert result.tiles[0].label == "at step 10"
    assert any("is that of step 10" in s.text for s in result.sentences)
    whole = verdict(run)
    assert whole.tiles[0].label == "before"
    assert not any("first evaluation" in s.text for s in whole.sentences)
