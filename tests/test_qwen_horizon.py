"""The study of long answers on Qwen2.5-Coder: its problems, its runs, its table of gains."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from opd import config
from opd.types import Prompt, Rollout

FOLDER = Path(__file__).parents[1] / "examples" / "qwen"
MODULES = ("tasks", "prepare", "teachers", "horizon")


@pytest.fixture
def horizon(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("horizon")
    for name in MODULES:
        sys.modules.pop(name, None)


def test_running_sums_are_right_and_end_with_the_answer(horizon):
    for row in horizon.rows("train", horizon.COUNTS):
        lines = horizon.working(row).splitlines()
        numbers = [int(x) for x in re.findall(r"\d+", row["problem"])][: len(lines) + 1]
        assert sum(numbers) == int(row["answer"])
        for line, number in zip(lines, numbers[1:], strict=True):
            a, b, total = map(int, re.fullmatch(r"(\d+) \+ (\d+) = (\d+)", line).groups())
            assert (a + b, b) == (total, number)
        assert lines[-1].endswith(f"= {row['answer']}")


def test_no_problem_is_in_two_sets(horizon):
    sets = [
        {row["problem"] for row in horizon.rows(split, [count] * 20, seed)}
        for split, seed in (("train", 0), ("sft", 0), ("heldout", 5), ("heldout", 40))
        for count in horizon.COUNTS
    ]
    assert sum(map(len, sets)) == len(set().union(*sets))


def test_every_limit_is_a_run_of_as_many_tokens(horizon, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(
        horizon.subprocess,
        "run",
        lambda command: called.append(command) or subprocess.CompletedProcess(command, 0),
    )
    (tmp_path / "data").mkdir()
    budgets, students = set(), set()
    for limit in horizon.LIMITS:
        horizon.train(limit, 0, tmp_path)
        cfg = config.parse(yaml.safe_load(Path(called[-1][-1]).read_text()), [])
        budgets.add(cfg.rollout.max_new_tokens * cfg.train.prompts_per_step * cfg.train.steps)
        students.add((cfg.student.model, cfg.teacher.model))
        prompts = Path(cfg.prompts.path).read_text().splitlines()
        assert len(prompts) == cfg.train.prompts_per_step * cfg.train.steps
    assert len(budgets) == len(students) == 1
    assert horizon.train(256, 1, tmp_path).parent.name == "horizon-256-1"
    again = config.parse(yaml.safe_load(Path(called[-1][-1]).read_text()), [])
    assert (again.train.seed, again.student.model) == (1, cfg.student.model)
    first = tmp_path / "data" / "running-train-256.jsonl"
    assert Path(again.prompts.path).read_text() != first.read_text()


def test_a_sum_is_right_that_goes_on_from_what_was_written(horizon):
    problem = "system. This is it. user What is 3 + 4 + 5 + 6 + 7 + 8 + 9? Give only the answer."
    assert horizon.numbers_of(problem) == [3, 4, 5, 6, 7, 8, 9]
    whole = horizon.working({"problem": problem})
    assert horizon.next_sums(problem, "", whole) == 1
    begun = "3 + 4 = 8\n8 + 5"  # a wrong total, and a sum that is not counted
    gone_on = begun + " = 1\n1 + 6 = 7\n7 + 7 = 14\n14 + 9 = 23\n23 + 9 = 32"
    assert horizon.next_sums(problem, begun, gone_on) == 3 / 4  # 9 is not the next number after 7
    assert horizon.next_sums(problem, begun, begun + " = 13\n13 + 6 = 19") == 1 / 4
    assert horizon.next_sums(problem, "3 + 4 = 7\n", "3 + 4 = 7\n\n\n") == 0
    assert np.isnan(horizon.next_sums(problem, whole, whole))


def test_both_go_on_from_what_the_student_wrote(horizon, monkeypatch, tmp_path):
    """The student's second sum is wrong, and it goes on wrongly; the teacher does not."""
    question = f"What is {' + '.join(['1'] * 40)}?"
    lines = horizon.working({"problem": question}).split("\n")
    wrong = [lines[0], "2 + 1 = 9", *lines[2:]]
    prompts = [Prompt(i, (1, 2), question) for i in range(3)]
    texts = {"student": "\n".join(wrong), "teacher": "\n".join(lines)}
    monkeypatch.setattr(horizon, "load_tokenizer", lambda path: None)
    monkeypatch.setattr(
        horizon,
        "load_lm",
        lambda path, **kwargs: texts[
            "student" if path.endswith(f"-{horizon.STUDENT}") else "teacher"
        ],
    )
    monkeypatch.setattr(horizon, "held_out", lambda *_: SimpleNamespace(prompts=prompts))
    monkeypatch.setattr(horizon, "make_decoder", lambda tokenizer: lambda ids: bytes(ids).decode())

    def answer(lm, tokenizer, prompts, stream, limit=400):
        """A token is a letter."""
        made = []
        for prompt in prompts:
            letters = list(lm.encode())[len(prompt.ids) - 2 :][:limit]
            ids, none = np.array(letters), np.zeros(len(letters))
            few = np.zeros((len(letters), 1))
            made.append(Rollout(prompt, 0, ids, none, none, few, few, "length", 0))
        return made

    monkeypatch.setattr(horizon, "answer", answer)
    monkeypatch.setattr(horizon, "DEPTHS", (0, 5, 12, 9000))
    table = horizon.gain_by_depth(tmp_path)
    found = {
        int(depth): [row[name]["value"] for name in ("student", "teacher", "gain")]
        + [row["on course"]]
        for depth, row in table.items()
    }
    # From the start: the third sum does not go on from 9. Later the wrong sum is begun already.
    assert found == {0: [0.5, 1, 0.5, 1], 5: [0.5, 1, 0.5, 1], 12: [0.75, 1, 0.25, 1]}
    assert json.dumps(table)
