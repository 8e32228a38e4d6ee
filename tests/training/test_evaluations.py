"""Evaluations that are kept: every process of a run knows of the same ones."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

from opd.core import stats
from opd.run.folder import RunFolder
from opd.training import evaluations
from opd.training.evaluate import Evaluation
from opd.types import Graded


def test_a_rank_knows_what_was_evaluated_before_it_sees_the_file(tmp_path, monkeypatch):
    """A rank that looked too early, or at a network disk, evaluated again by itself: both hung."""
    correct = np.array([[1], [0], [1]], dtype=bool)
    one = stats.avg_at_n(correct)
    answers = [Graded(i, 0, bool(c), 1, "stop", "text", {}) for i, c in enumerate(correct)]
    result = Evaluation("task", one, {}, one, 0.0, one, correct, answers)
    task = SimpleNamespace(label="task", every=5, key={"n": 1})
    session = SimpleNamespace(
        folder=RunFolder.read_only(tmp_path / "run", {}),  # rank zero has not written yet
        source=SimpleNamespace(decode=None),
        cfg=SimpleNamespace(train=SimpleNamespace(seed=0)),
        evals=[task],
        evaluations={},
    )
    calls = []
    monkeypatch.setattr(evaluations, "evaluate", lambda *_, **__: calls.append(1) or result)
    assert evaluations.mean_accuracy(session, 10) is None
    evaluations.evaluate_once(session, task, 10, "task", None)
    assert evaluations.mean_accuracy(session, 10) == one.value
    again = evaluations.evaluate_once(session, task, 10, "task", None)
    assert len(calls) == 1
    assert again.values() == result.values()
    assert again.graded == []  # texts of a whole run do not stay in memory
    evaluations.evaluate_once(session, task, 15, "task", None)
    assert len(calls) == 2


def test_the_best_student_is_the_best_on_the_same_sets(monkeypatch):
    """A set evaluated twice as often was alone at step 10: .9, which no mean of both can reach."""
    accuracies = {"easy": 0.9, "hard": 0.1}
    tasks = [
        SimpleNamespace(label=name, every=every, key={})
        for name, every in (("easy", 10), ("hard", 20))
    ]
    best, kept = [], Mock(evaluations={}, evals=tasks, steps=40, warm_started=False)

    def evaluate_once(session, task, step, name, *rest):
        estimate = SimpleNamespace(value=accuracies[name] + step / 1000)
        result = SimpleNamespace(accuracy=estimate, values=dict)
        session.evaluations[step, name] = result
        return result

    monkeypatch.setattr(evaluations, "evaluate_once", evaluate_once)
    kept.clock = lambda phase: nullcontext()
    kept.interventions.record_accuracy.side_effect = lambda step, mean: best.append((step, mean))
    kept.folder.load_eval.return_value = None
    for step in range(0, 41, 5):
        evaluations.evaluate_due(kept, step)
    assert [step for step, _ in best] == [0, 20, 40]
    assert [mean for _, mean in best] == pytest.approx([0.5, 0.52, 0.54])
