"""Evaluations that are kept: every process of a run knows of the same ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

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
