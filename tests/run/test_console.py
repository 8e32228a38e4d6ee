"""What people see: lines when piped, JSON when asked, phases and a slow teacher when live."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console as RichConsole

from opd.commands.first_commands import FIRST_COMMANDS
from opd.core.stats import Estimate
from opd.run.clock import Clock
from opd.run.console import Console, PhaseColumn

VALUES = {"diag/reverse_kl": 0.25, "diag/overlap_mass_student": 0.97, "rollout/length": 12.0}


def piped(style: str) -> tuple[Console, io.StringIO]:
    console, out = Console(style), io.StringIO()
    console.out = RichConsole(file=out, highlight=False, width=200)
    return console, out


def test_piped_is_plain_lines_with_teacher_and_accuracy():
    console, out = piped("plain")
    console.start(0, 5)
    console.show_evaluation(0, "sum", Estimate(0.5, 0.4, 0.6, 100))
    console.show_phase("score", None)
    console.show_phase("score", 0.5)
    console.show_step(1, VALUES, 1000.0)
    text = out.getvalue()
    assert "\x1b" not in text
    for words in ("KL 0.250", "mass 97.0%", "teacher 0.5 s", "1,000 tok/s", "sum 50.0%", "left"):
        assert words in text


def test_json_is_one_object_a_line_also_with_nan():
    console, out = piped("json")
    console.start(0, 5)
    console.print("for people")
    console.show_step(1, VALUES | {"train/loss": math.nan}, 1000.0)
    console.show_evaluation(1, "sum", Estimate(0.5, 0.4, 0.6, 100))
    step, accuracy = map(json.loads, out.getvalue().splitlines())
    assert step["diag/reverse_kl"] == 0.25
    assert (step["train/loss"], step["nonfinite"]) == (None, {"train/loss": "nan"})
    assert (accuracy["accuracy"], accuracy["low"], accuracy["n"]) == (0.5, 0.4, 100)


def test_quiet_says_nothing():
    console, out = piped("quiet")
    console.start(0, 5)
    console.show_step(1, VALUES, 1000.0)
    console.show_evaluation(1, "sum", Estimate(0.5, 0.4, 0.6, 100))
    assert out.getvalue() == ""


def test_clock_tells_phases_and_a_slow_teacher_stands_out():
    column = PhaseColumn()
    clock = Clock(column.update)
    with clock("score"):
        assert str(column.render(None)).startswith("scoring")
        column._since -= 60
        assert column.render(None).style == "yellow"
    assert column.teacher_seconds is not None
    assert str(column.render(None)) == ""


def test_time_left_counts_steps_and_no_evaluation(monkeypatch):
    """A run of minutes said 33 hours after a long evaluation of step 0."""
    now = [0.0]
    monkeypatch.setattr("opd.run.console.time.monotonic", lambda: now[0])
    console, out = piped("plain")
    console.start(0, 200)
    console.show_phase("evaluate", None)
    now[0] += 600
    console.show_phase("evaluate", 600.0)
    now[0] += 2
    console.show_step(1, VALUES, 1000.0)
    assert "6m38s left" in out.getvalue()
    now[0] += 199 * 200
    console.show_step(2, VALUES, 1000.0)
    assert "h" in out.getvalue().splitlines()[-1].split()[-2]


@pytest.mark.parametrize(("width", "last"), [(80, "sum 12.5%"), (60, "KL 0.250")])
def test_the_live_line_is_one_line_with_bar_phase_and_time_first(width, last):
    console, out = piped("auto")
    console.out = RichConsole(file=out, force_terminal=True, width=width, color_system=None)
    console.live = True
    console.start(0, 2000)
    try:
        console.show_evaluation(0, "sum", Estimate(0.125, 0.1, 0.2, 100))
        console.show_step(100, VALUES | {"diag/top1_agreement": 0.5}, 1000.0)
        console.show_phase("score", None)
        console._phase._since -= 12
        console._progress.update(console._task, left="12m03s")
        lines = console.out.render_lines(console._progress.get_renderable())
    finally:
        console.close()
    (line,) = ("".join(segment.text for segment in line) for line in lines)
    for words in ("step 100/2000", "12m03s", "scoring 12 s", last):
        assert words in line


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_terminal_of_any_width_breaks_lines_between_words(width):
    console, out = piped("auto")
    console.out = RichConsole(file=out, force_terminal=True, width=width, color_system=None)
    console.live = True
    path = "/a/folder/" + "deep/" * 30
    texts = [
        "  change   +68.0 points (95% interval +64.1 to +71.6: better), all by the same student",
        f"Next: opd eval {path} and then the other commands that --help shows, one by one",
    ]
    for text in texts:
        console.print(text)
    lines = out.getvalue().splitlines()
    assert " ".join(out.getvalue().split()) == " ".join(" ".join(texts).split())
    assert all(len(line) <= width for line in lines if path not in line)
    assert any(path in line for line in lines)


def test_the_first_commands_fit_into_60_columns():
    assert max(map(len, FIRST_COMMANDS.splitlines())) < 60


def test_an_evaluation_outside_a_run_names_no_step(capsys):
    Console("json").show_evaluation(None, "sum", Estimate(0.5, 0.4, 0.6, 100))
    assert "step" not in json.loads(capsys.readouterr().out)
