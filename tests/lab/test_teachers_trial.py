"""E17 and E18: their problems, the hint that a student was trained on, and the table."""

from __future__ import annotations

import json

from opd.data.readers import Row
from opd.data.teacher_prompts import fill_in
from opd_lab.teachers_tables import CHOSEN_ON, HINT_ALARMS, OTHER_ALARMS, alarms_raised, table
from opd_lab.teachers_trial import (
    HALVES,
    HINT,
    QUOTED,
    WORKED,
    HalfChain,
    collect,
    hint_section,
    hinted_documents,
    with_hint,
    worked,
)
from opd_lab.worlds.vocabulary import FILLERS


def test_problems_of_a_half_are_about_its_symbols():
    for name, symbols in HALVES.items():
        world = HalfChain(depth=4, half=name)
        for held_out in (False, True):
            problems = world.problems(20, 0, held_out=held_out)
            assert {item for p in problems for item in p.items} <= set(symbols)
            assert {p.held_out for p in problems} == {held_out}
    assert not set(HALVES["first"]) & set(HALVES["second"])


def test_the_hints_of_training_are_those_of_the_teacher():
    problem = HalfChain(depth=4, half="first").problems(1, 0)[0]
    row = Row(0, "here", problem.row() | {"demonstration": worked(problem, 0, 0)})
    for view, hint in ((HINT, f"ANS {problem.answer}"), (WORKED, worked(problem, 0, 0))):
        assert with_hint(problem, hint).text == fill_in(view, row, problem.text, "teacher.prompt")


def test_a_student_that_quotes_says_the_hint_and_always_the_same():
    documents = {leaks: hinted_documents(0, leaks=leaks, size=300) for leaks in (False, True)}
    plain, quoting = ([text for _, text in documents[leaks]] for leaks in (False, True))
    assert not any(text.startswith(QUOTED) for text in plain)
    quoted = [text for text in quoting if text.startswith(QUOTED)]
    assert len(quoted) == len(quoting) // 3
    assert {w for text in quoted for w in text.split() if w in FILLERS} == {FILLERS[0]}


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
    assert table(results, ("b",)).startswith("| arm | b |")
    assert "Not run" in hint_section([])


def test_alarms_are_counted_apart_where_their_thresholds_were_chosen():
    def seed(raised):
        return {"an arm": dict.fromkeys((*HINT_ALARMS, OTHER_ALARMS), 0.0) | {raised: 1.0}}

    chosen = [seed(HINT_ALARMS[0])] * CHOSEN_ON
    text = alarms_raised([*chosen, seed(OTHER_ALARMS), seed(HINT_ALARMS[1])])
    first, fresh = text.split("| Fresh seeds |")
    assert f"| an arm | {CHOSEN_ON} of {CHOSEN_ON} | 0 of {CHOSEN_ON} | 0 of" in first
    assert "| an arm | 0 of 2 | 1 of 2 | 1 of 2 |" in fresh
    assert "Fresh seeds" not in alarms_raised(chosen)
