"""What people see: lines when piped, JSON when asked, phases and a slow teacher when live."""

from __future__ import annotations

import io
import json
import math

from rich.console import Console as RichConsole

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
    for words in ("KL 0.250", "mass 97.0%", "teacher 0.5 s", "1000 tok/s", "sum 50.0%", "left"):
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
        assert str(column.render(None)).startswith("teacher scores")
        column._since -= 60
        assert column.render(None).style == "yellow"
    assert column.teacher_seconds is not None
    assert str(column.render(None)) == ""
