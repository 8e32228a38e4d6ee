"""Grades of several processes: rank zero's, whatever the clock or the function of another says."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from opd.data.graders import FunctionGrader
from opd.errors import UserError
from opd.setup.session import distribute
from opd.training.eval_task import EvalTask
from opd.training.experience import ExperienceSource
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


def test_every_process_has_the_grades_of_rank_zero():
    """Each asked its own: a text that ran out of time at one was right at another."""
    asked = [count(), count(), count()]

    def work(ranks):
        def verdict(text, answer):  # a judge that never says the same
            return bool((next(asked[ranks.rank]) + ranks.rank) % 2)

        training, held_out = graders(verdict, ranks)
        assert held_out.kind == "python:mine"
        return training.rewards(TEXTS, ANSWERS), held_out.grade(TEXTS, ANSWERS)

    results = run_ranks(work, 3)
    for rewards, grades in results:
        np.testing.assert_array_equal(rewards, [0, 1, 0, 1])
        assert [g.correct for g in grades] == [False, True, False, True]
        assert grades == results[0][1]
    assert [next(each) for each in asked] == [8, 0, 0]


def test_what_rank_zero_refuses_is_refused_by_all():
    def work(ranks):
        training, held_out = graders(lambda text, answer: "yes", ranks)
        for ask in (training.rewards, held_out.grade):
            with pytest.raises(UserError, match="python:mine returned 'yes'"):
                ask(TEXTS, ANSWERS)
        return True

    assert all(run_ranks(work, 2))
