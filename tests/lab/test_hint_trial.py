"""The trial of hints on a real model: its prompts, and its page from tiny models."""

from __future__ import annotations

from opd_lab import hint_trial as trial
from opd_lab import tokenizers_trial
from opd_lab.pairs.real import FOLDERS
from support.foreign import byte_tokenizer, foreign_model

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def test_a_hint_is_the_answer_of_its_problem_or_another_problem_solved(monkeypatch):
    monkeypatch.setattr(trial, "TEST", 6)
    bare, answer, worked = (trial.rows("heldout", h) for h in (None, trial.ANSWER, trial.WORKED))
    for plain, given, shown in zip(bare, answer, worked, strict=True):
        problem = plain["prompt"][-1]["content"]
        hint = given["prompt"][-1]["content"].removeprefix(problem)
        assert hint.strip() == f"Reference answer: {plain['answer']}"
        other = shown["prompt"][-1]["content"].removeprefix(problem)
        assert plain["answer"] not in other
        question, solution = plain["demonstration"].splitlines()
        assert sorted(question.split(": ")[1].rstrip(".").split(", ")) == solution.split(", ")


def test_a_trial_writes_its_page_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    tokenizer = byte_tokenizer(["Sort these numbers"], vocab=300, template=TEMPLATE)
    monkeypatch.setenv(FOLDERS["smollm2"], str(foreign_model(tmp_path / "base", tokenizer)))
    for name, value in {"TRAIN": 4, "TEST": 2, "STEPS": 2, "EVERY": 1, "TUNED": 1}.items():
        monkeypatch.setattr(trial, name, value)
    monkeypatch.setattr(trial, "PROMPTS", 2)
    monkeypatch.setattr(trial, "TOKENS", 4)
    page, cache = tmp_path / "page.md", tmp_path / "cache"
    arguments = ["--cache", str(cache), "--write", str(page), "--arms", "answer", "external"]
    trial.main(arguments)
    text = page.read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "seed 0" in line]
    assert [len(row) for row in rows] == [5, 5, 7, 7]  # steps 0, 1 and 2; what alarms look at
    watched = {row[0]: row[4] for row in rows[2:]}
    assert watched["as it is, itself with the answer, seed 0"].count("->") == 1
    assert watched["as it is, a fine-tuned teacher, seed 0"] == "-"  # there is no hint to quote

    monkeypatch.setattr(tokenizers_trial, "distill", None)  # nothing is trained again
    monkeypatch.setattr(trial, "sft", None)
    monkeypatch.setattr(trial, "evaluate_config", None)
    trial.main(arguments)
    assert page.read_text("utf-8") == text
