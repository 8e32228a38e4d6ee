"""Grades of several processes: each text is graded by one, and all of them go on with that."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from opd.data.graders import FunctionGrader, make_grader
from opd.errors import UserError
from opd.setup.session import distribute
from opd.training.eval_task import EvalTask
from opd.training.experience import ExperienceSource
from opd.training.shared_grader import SharedGrader
from support.ranks import run_ranks

TEXTS, ANSWERS = ["a", "b", "a", "\ud800"], ["1", "2", "1", ""]


def graders(function, ranks):
    """The graders of a run by several processes: of training rollouts and of a held-out set."""
    own = FunctionGrader(function, "python:mine")
    no = SimpleNamespace(digest="")
    stop = torch.tensor([1])
    source = ExperienceSource(no, None, None, None, own, None, stop, (), None, None)
    task = EvalTask("task", no, own, None, 1, 0)
    source, (task,) = distribute(source, [task], ranks)
    return source.grader, task.grader


def test_every_process_has_the_same_grades_and_each_text_is_graded_once():
    """Each asked its own: a text that ran out of time at one was right at another."""
    asked = [[], [], []]

    def work(ranks):
        def verdict(text, answer):  # one that says something else at each process
            asked[ranks.rank].append(text)
            return ranks.rank == 1

        training, held_out = graders(verdict, ranks)
        assert held_out.kind == "python:mine"
        return training.rewards(TEXTS, ANSWERS), held_out.grade(TEXTS, ANSWERS)

    results = run_ranks(work, 3)
    for rewards, grades in results:
        np.testing.assert_array_equal(rewards, [0, 1, 0, 0])
        assert [g.correct for g in grades] == [False, True, False, False]
        assert grades == results[0][1]
    assert asked == [["a", "\ud800"] * 2, ["b"] * 2, ["a"] * 2]


@pytest.mark.parametrize("size", [2, 3, 6])
def test_the_grades_are_those_of_one_process(size):
    texts = ["It is 12", "13", "", "no", "12"]
    answers = ["12"] * len(texts)
    alone = make_grader("number", answers)
    expected = alone.grade(texts, answers), alone.rewards(texts, answers)
    for ranks_grades, rewards in run_ranks(
        lambda ranks: (
            SharedGrader(alone, ranks).grade(texts, answers),
            SharedGrader(alone, ranks).rewards(texts, answers),
        ),
        size,
    ):
        assert ranks_grades == expected[0]
        np.testing.assert_array_equal(rewards, expected[1])


def test_what_one_process_refuses_is_refused_by_all():
    def work(ranks):
        training, held_out = graders(lambda text, answer: "yes" if text == "b" else True, ranks)
        for ask in (training.rewards, held_out.grade):
            with pytest.raises(UserError, match="python:mine returned 'yes'"):
                ask(TEXTS, ANSWERS)
        return True

    assert all(run_ranks(work, 2))
