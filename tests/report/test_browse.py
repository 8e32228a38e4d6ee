"""Lists of answers and rollouts: every row, its filters, and no more text than a page can hold."""

from __future__ import annotations

import json

import pytest

from opd.commands.report import report
from opd.reports import answers
from opd.reports.answers import held_out_answers, shortened, text_limit, training_rollouts
from opd.reports.read import read_run
from opd.reports.scored_rollouts import scored_rollouts
from support.html_reports import browsed


def test_every_answer_is_a_row_with_the_filters_of_its_grades(make_run):
    run = read_run(make_run(accuracy={0: 0.5, 20: 0.8}, teacher=0.9))
    task = run.evals[0]
    browse = held_out_answers(task)
    graded = [
        {(g.prompt_index, g.sample): g.correct for g in e.graded}
        for e in (task.student[0], task.final, task.teacher)
    ]
    assert len(browse.rows) == len(graded[0])
    for row in browse.rows:
        key = tuple(map(int, row.name.split("-")))
        before, after, teacher = (by_key[key] for by_key in graded)
        kind = {(0, 1): "fixed", (1, 0): "broken", (0, 0): "wrong", (1, 1): "right"}[before, after]
        assert list(row.tags) == [kind, *([] if teacher else ["teacher"])]
        assert [t.correct for t in row.texts] == [before, after, teacher]
        assert browse.prompts[row.prompt].index == key[0]
    counts = dict(browse.counts())
    fixed = sum(after and not graded[0][key] for key, after in graded[1].items())
    assert counts["fixed"] == fixed > 0


def test_without_training_there_is_nothing_to_compare(make_run):
    assert held_out_answers(read_run(make_run(accuracy={0: 0.5})).evals[0]) is None


def test_of_too_many_answers_those_that_changed_are_shown(make_run, monkeypatch):
    task = read_run(make_run(accuracy={0: 0.9, 20: 0.2})).evals[0]
    whole = dict(held_out_answers(task).counts())
    monkeypatch.setattr(answers, "MAX_ROWS", whole["broken"] + 3)
    browse = held_out_answers(task)
    assert len(browse.rows) == whole["broken"] + 3
    assert dict(browse.counts())["broken"] == whole["broken"]
    assert f"{whole['broken'] + 3:,} are shown" in browse.note


@pytest.mark.parametrize("texts", [1, 100, 10_000])
def test_the_texts_of_a_list_have_a_limit(texts):
    limit = text_limit(texts)
    text = shortened("x" * 100_000 + "end", limit)
    assert answers.MIN_TEXT <= limit <= answers.MAX_TEXT
    assert len(text) <= limit + 40
    assert text.endswith("end")
    assert "characters left out" in text


def test_rollouts_are_sorted_by_prompt_and_have_their_kl(good):
    run = read_run(good)
    scored = [r for step in (1, 5, 20) for r in scored_rollouts(run, step)]
    browse = training_rollouts(scored)
    order = [(browse.prompts[r.prompt].index, r.values["step"]) for r in browse.rows]
    assert order == sorted(order)
    for row in browse.rows:
        step, prompt = int(row.values["step"]), browse.prompts[row.prompt].index
        match = [s for s in scored if s.step == step and s.rollout.prompt.index == prompt]
        assert row.values["kl"] in [round(-s.mean, 4) for s in match]


def test_page_and_sidecar_hold_the_same_rows(make_run):
    page = report(make_run(accuracy={0: 0.2, 20: 0.8}))
    lists = browsed(page.read_text("utf-8"))
    sections = json.loads(page.with_suffix(".json").read_text())["sections"]
    parts = [p for s in sections.values() for p in s["parts"] if p["kind"] == "browse"]
    assert [len(each["rows"]) for each in lists] == [len(p["rows"]) for p in parts]
    for each, part in zip(lists, parts, strict=True):
        assert [row["n"] for row in each["rows"]] == [row["name"] for row in part["rows"]]


def test_the_entropy_of_evaluations_stands_beside_its_start(make_run):
    page = report(make_run(accuracy={0: 0.2, 20: 0.8}))
    sections = json.loads(page.with_suffix(".json").read_text())["sections"]
    table = next(p for p in sections["accuracy"]["parts"] if p["kind"] == "table")
    row = next(r for r in table["rows"] if "entropy" in r[0])
    assert [cell["value"] for cell in row[1:]] == [0.5, 0.5, 0.5]
