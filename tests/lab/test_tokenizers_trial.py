"""The trial of two tokenizers, from prompts to its page, on tiny models."""

from __future__ import annotations

import json
import logging

import pytest

from opd_lab import tokenizers_trial as trial
from opd_lab.pairs.real import FOLDERS
from opd_lab.runs import only_errors
from support.foreign import byte_tokenizer, foreign_model

TEMPLATE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Tiny models in the places of the real ones, and a trial of two steps."""
    for name, sizes in (("smollm2", 300), ("qwen-0.5b", 420)):
        tokenizer = byte_tokenizer([" ".join(trial.WORDS)], vocab=sizes, template=TEMPLATE)
        monkeypatch.setenv(FOLDERS[name], str(foreign_model(tmp_path / name, tokenizer)))
    monkeypatch.setattr(trial, "TRAIN", 8)
    monkeypatch.setattr(trial, "TEST", 4)
    monkeypatch.setattr(trial, "TEACHERS", dict.fromkeys(trial.TEACHERS, 1))
    monkeypatch.setattr(trial, "STEPS", 2)
    monkeypatch.setattr(trial, "PROMPTS", 2)
    monkeypatch.setattr(trial, "has_gold", lambda: False)
    return tmp_path / "cache"


@pytest.mark.parametrize("task", trial.TASKS)
def test_no_problem_of_training_is_held_out(task):
    train, held_out = (trial.questions(task, split, 60) for split in ("train", "heldout"))
    assert len(train) == len(held_out) == 60
    assert not {q for q, _ in train} & {q for q, _ in held_out}
    for question, answer in held_out:
        words = question.split(": ")[1].rstrip(".").split(", ")
        assert answer.split(", ") == (words[::-1] if task == "words" else sorted(words))


def test_a_trial_writes_its_page_and_goes_on_where_it_stopped(tiny, monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    arguments = ["--cache", str(tiny), "--tasks", "words", "--write", str(page)]
    trial.main(arguments)
    text = page.read_text("utf-8")
    other, same = (line.split(" | ") for line in text.splitlines() if line.startswith("| words"))
    assert other[1] == "other tokenizer, seed 0"
    assert same[1] == "same tokenizer, seed 0"
    assert other[6].endswith("%")
    assert same[6] == "-"
    assert "GOLD" not in text
    run = json.loads((tiny / "run-words-qwen-0.5b-0" / "config.json").read_text("utf-8"))
    teacher = str(tiny / "teacher-words-qwen-0.5b")
    assert (run["teacher"]["model"], run["teacher"]["tokenizer"]) == (teacher, teacher)

    monkeypatch.setattr(trial, "distill", None)  # nothing is trained again
    monkeypatch.setattr(trial, "sft", None)
    monkeypatch.setattr(trial, "evaluate_config", None)
    trial.main(arguments)
    assert page.read_text("utf-8") == text


def test_a_trial_leaves_the_level_of_warnings_as_it_was():
    ours = logging.getLogger("opd")
    before = ours.level
    with only_errors():
        assert ours.level == logging.ERROR
    assert ours.level == before
