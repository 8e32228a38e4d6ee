"""E17 and E18: their problems, the hint that a student was trained on, and the table."""

from __future__ import annotations

import json

from opd.data.readers import Row
from opd.data.teacher_prompts import fill_in
from opd_lab.teachers_trial import HALVES, HINT, HalfChain, collect, table, with_hint


def test_problems_of_a_half_are_about_its_symbols():
    for name, symbols in HALVES.items():
        world = HalfChain(depth=4, half=name)
        for held_out in (False, True):
            problems = world.problems(20, 0, held_out=held_out)
            assert {item for p in problems for item in p.items} <= set(symbols)
            assert {p.held_out for p in problems} == {held_out}
    assert not set(HALVES["first"]) & set(HALVES["second"])


def test_the_hint_of_training_is_that_of_the_teacher():
    problem = HalfChain(depth=4, half="first").problems(1, 0)[0]
    row = Row(0, "here", problem.row())
    assert with_hint(problem).text == fill_in(HINT, row, problem.text, "teacher.prompt")


def test_results_are_kept_and_shown_with_their_interval(tmp_path):
    seen = []

    def measure(trial):
        seen.append(trial.seed)
        return {"before": {"a": 0.25}, "after": {"a": 0.5 + 0.1 * trial.seed, "b": 1.0}}

    results = collect(measure, "e0", 2, tmp_path)
    assert collect(measure, "e0", 2, tmp_path) == results
    assert seen == [0, 1]
    assert json.loads((tmp_path / "e0-1.json").read_text())["after"]["a"] == 0.6
    text = table(results)
    assert "| before | 0.25 [0.25, 0.25] | - |" in text
    assert "| after | 0.55 [" in text
