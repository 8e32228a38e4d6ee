"""The overlap family computed from what a run left on disk equals what the run logged."""

from __future__ import annotations

import numpy as np
import pytest

from opd.recipes.distillation import distill
from opd.recipes.measure import measure
from opd.run.jsonl import read_jsonl
from opd.run.metric_names import OVERLAP
from opd.run.rollouts import read_step
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.teachers.local import LocalTeacher
from opd.types import Rollout, Scores, Want
from support.runs import open_run, short_demo


@pytest.mark.parametrize("support", ["teacher_topk", "student_topk"])
def test_saved_rollouts_give_the_logged_numbers(tmp_path, support):
    data = short_demo(tmp_path / "run") | {"eval": []}
    data["train"] |= {"steps": 1, "prompts_per_step": 4}
    data["output"]["rollout_sample"] = 1000
    data["loss"] = {"support": support, "k": 16}
    session, completions = open_run(data)
    distill(session, completions)
    session.folder.close()
    (logged,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    rollouts, scores = read_step(tmp_path / "run" / "rollouts" / "step-1.parquet")
    teacher = None if support == "teacher_topk" else session.source.teacher
    measured = measure(rollouts, scores, teacher=teacher)
    assert set(measured) == set(OVERLAP)
    for name, mean in measured.items():
        # the sampler decodes token by token, the trainer in one pass: fp32 rounding
        assert mean.value == pytest.approx(logged[name], rel=1e-3, abs=1e-5), name


def test_missing_top_tokens_are_an_error(make_lm, make_prompts):
    sampler = HFSampler(make_lm(0), Decoding(3), stop=frozenset(), capture=4)
    rollouts = sampler.sample(make_prompts(3), n=1, key=(0,))
    with pytest.raises(ValueError, match="fewer than k=16"):
        measure(rollouts)
    with pytest.raises(ValueError, match="no teacher to ask"):
        measure(rollouts, k=4)
    few = LocalTeacher(make_lm(1)).score(rollouts, Want(topk=3))
    with pytest.raises(ValueError, match="no teacher to ask"):
        measure(rollouts, few, k=4)


def test_empty_rollouts_are_left_out(make_lm, make_prompts):
    teacher = LocalTeacher(make_lm(1))
    sampler = HFSampler(make_lm(0), Decoding(3), stop=frozenset(), capture=4)
    rollouts = sampler.sample(make_prompts(3, 5), n=1, key=(0,))
    empty = Rollout.of_ids(rollouts[0].prompt, np.empty(0, np.int32))
    scores = teacher.score(rollouts, Want(topk=4))
    scored = [scores[0], Scores(), scores[1]]
    with_empty = measure([rollouts[0], empty, rollouts[1]], scored, k=4)
    assert with_empty == measure(rollouts, scores, k=4)
    assert with_empty == measure(rollouts, teacher=teacher, k=4)
