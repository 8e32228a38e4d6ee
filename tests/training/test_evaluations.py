"""Evaluations that are kept: every process of a run knows of the same ones."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from opd.core import stats
from opd.run.folder import RunFolder
from opd.training import evaluations
from opd.training.distributed import Ranks
from opd.training.evaluate import Evaluation


def test_what_rank_zero_keeps_is_there_before_another_rank_goes_on(tmp_path, monkeypatch):
    """A rank that looked before rank zero had written it evaluated again, and both hung."""
    correct = np.array([[1], [0], [1]], dtype=bool)
    one = stats.avg_at_n(correct)
    result = Evaluation("task", one, {}, one, 0.0, one, correct, [])
    task = SimpleNamespace(label="task", every=5, key={"n": 1})
    main = RunFolder.create(tmp_path / "run", {"train": {"seed": 0}})

    class SlowRankZero(Ranks):
        def barrier(self) -> None:  # rank zero comes to it when its file is written
            key = evaluations.result_key(session, task)
            main.save_eval(10, "task", result.record(), result.graded, key=key)

    session = SimpleNamespace(
        folder=RunFolder.read_only(tmp_path / "run", {}),
        source=SimpleNamespace(decode=None),
        cfg=SimpleNamespace(train=SimpleNamespace(seed=0)),
        learner=SimpleNamespace(ranks=SlowRankZero(1, 2)),
        evals=[task],
    )
    monkeypatch.setattr(evaluations, "evaluate", lambda *_, **__: result)
    assert evaluations.mean_accuracy(session, 10) is None
    evaluations.evaluate_once(session, task, 10, "task", None)
    assert evaluations.mean_accuracy(session, 10) == one.value
    main.close()
