"""The verdict says what the numbers support, no more."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats as scipy_stats

from opd.reports.findings import change
from opd.reports.read import Series, read_run
from opd.reports.verdict import verdict
from support.run_folders import good_run


def said(path):
    found = verdict(read_run(path))
    return found, " ".join(s.text for s in (*found.sentences, *found.advice))


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
    found, _ = said(make_run(accuracy=accuracy, teacher=teacher))
    assert (found.tone, found.headline[: len(words)]) == (tone, words)


def test_numbers_of_the_tiles_are_those_of_the_evaluations(make_run):
    found, _ = said(make_run(accuracy={0: 0.2, 20: 0.8}, teacher=0.9))
    values = {tile.label: tile.number.value for tile in found.tiles}
    assert values["before"] == pytest.approx(0.2)
    assert values["after 20 steps"] == pytest.approx(0.8)
    assert values["of the gap recovered"] == pytest.approx(0.6 / 0.7)


def test_a_gap_not_measured_yet_is_not_called_absent(make_run):
    found, _ = said(make_run(accuracy={0: 0.2}, teacher=0.9, planned=40))
    assert found.tiles[-1].number.note == "not known before the next evaluation"
    found, _ = said(make_run("level", accuracy={0: 0.8, 20: 0.8}, teacher=0.7))
    assert found.tiles[-1].number.note == "the teacher was not ahead"


def test_a_worse_teacher_is_named(make_run):
    _, text = said(make_run(accuracy={0: 0.8, 20: 0.4}, teacher=0.3))
    assert "The teacher was worse than the student" in text
    assert "Choose a teacher that is ahead" in text


LIMITS = [
    ("diag/overlap_mass_student", lambda s: 0.99 - 0.02 * s, "its overlap mass fell"),
    ("diag/overlap_ratio", lambda s: 0.78 + 0.001 * (s % 2), "the overlap ratio did not rise"),
    ("diag/overlap_ratio", lambda s: 0.9 - 0.01 * s, "the overlap ratio fell"),
    ("diag/reverse_kl", lambda s: 0.01 + 0.0001 * (s % 2), "little to learn from this teacher"),
    ("diag/entropy_gap_abs", lambda s: 0.1 * s, "entropy gap widened"),
    ("rollout/truncated", lambda s: 0.05 * s, "cut by the token limit"),
    ("rollout/repetition", lambda s: 0.05 * s, "repeats itself more"),
]


@pytest.mark.parametrize(("name", "course", "words"), LIMITS)
def test_each_limit_is_said_when_it_is_there_and_not_otherwise(make_run, name, course, words):
    low = {"diag/overlap_mass_student": lambda s: 0.9} if name == "diag/overlap_ratio" else {}
    _, text = said(make_run("bad", series=good_run() | low | {name: course}))
    assert words in text
    _, text = said(make_run("fine"))
    assert words not in text


def test_a_falling_overlap_ratio_is_no_limit_of_a_run_that_worked_on_shared_mass(make_run):
    """Two peaked distributions agree where it matters, and their tails are noise."""
    falling = good_run() | {"diag/overlap_ratio": lambda s: 0.9 - 0.01 * s}
    _, text = said(make_run("worked", series=falling))
    assert "overlap ratio" not in text
    _, text = said(make_run("not", series=falling, accuracy={0: 0.2, 20: 0.3}))
    assert "the overlap ratio fell" in text


def test_overlap_mass_that_became_whole_is_no_limit(make_run):
    """As in the SmolLM2 example: .84 at the first step, 1 from the fourth on."""
    risen = good_run() | {"diag/overlap_mass_student": lambda s: 0.84 if s < 3 else 0.9995}
    _, text = said(make_run(series=risen))
    assert "overlap mass" not in text


def test_still_rising_needs_a_paired_rise_at_the_end(make_run):
    _, text = said(make_run("up", accuracy={0: 0.2, 10: 0.4, 20: 0.8}))
    assert "still rising" in text
    _, text = said(make_run("flat", accuracy={0: 0.2, 10: 0.8, 20: 0.8}))
    assert "still rising" not in text


def test_a_run_that_stopped_says_so(make_run):
    _, text = said(make_run(planned=100))
    assert "stopped early, after 20 of 100 steps" in text
    assert "`opd train ... --resume`" in text


@pytest.mark.parametrize(
    ("kept", "after", "words"),
    [(10, 0.6, "student of step 10, the best so far"), (0, 0.2, "student of step 0, the best so")],
)
def test_a_run_that_an_alarm_ended_is_about_the_student_it_kept(make_run, kept, after, words):
    path = make_run(accuracy={0: 0.2, 10: 0.6, 20: 0.3}, planned=100)
    stopped = {"step": 20, "name": "accuracy-falling", "message": "It fell.", "action": "stop"}
    (path / "summary.json").write_text(json.dumps({"steps": kept, "stopped": stopped}))
    found, text = said(path)
    assert read_run(path).evals[0].last.accuracy.value == pytest.approx(after)
    assert "The alarm accuracy-falling ended the run after 20 of 100 steps" in text
    assert words in text
    assert "--resume" not in text
    assert ("stays as it came" in found.headline) == (kept == 0)


def test_a_summary_from_before_a_resume_is_not_believed(make_run):
    path = make_run(accuracy={0: 0.2, 10: 0.6, 20: 0.3})
    stopped = {"step": 12, "name": "accuracy-falling", "action": "stop"}
    (path / "summary.json").write_text(json.dumps({"steps": 10, "stopped": stopped}))
    run = read_run(path)
    assert (run.ended_by, run.kept) == (None, None)
    assert run.evals[0].last.step == 20


def test_change_is_welchs_interval():
    values = np.random.default_rng(1).normal(size=37)
    values[-7:] += 3
    found = change(Series(np.arange(37.0), values))
    theirs = scipy_stats.ttest_ind(values[-7:], values[:7], equal_var=False)
    ends = theirs.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-12)


def test_change_of_noise_is_no_change_in_most_runs():
    """At 95 % an interval of pure noise leaves 0 out about once in twenty."""
    rng = np.random.default_rng(0)
    steps = np.arange(100.0)
    found = [change(Series(steps, rng.normal(size=100))) for _ in range(200)]
    share = np.mean([c.rose or c.fell for c in found])
    assert 0.01 <= share <= 0.11  # binomial, four standard deviations around 0.05
