"""The overlap family computed from what a run left on disk equals what the run logged."""

from __future__ import annotations

import numpy as np
import pytest

from opd.demo.run_config import demo_config
from opd.recipes.distillation import distill
from opd.recipes.measure import measure
from opd.run.jsonl import read_jsonl
from opd.run.metric_names import OVERLAP
from opd.run.rollouts import read_step
from support.runs import open_run


@pytest.mark.parametrize("support", ["teacher_topk", "student_topk"])
def test_saved_rollouts_give_the_logged_numbers(tmp_path, support):
    data = demo_config(tmp_path / "run") | {"eval": []}
    data["train"] |= {"steps": 1, "prompts_per_step": 4}
    data["output"]["rollout_sample"] = 1000
    data["loss"] = {"support": support, "k": 16}
    session, completions = open_run(data)
    distill(session, completions)
    session.folder.close()
    (logged,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    rollouts, scores = read_step(tmp_path / "run" / "rollouts" / "step-1.parquet")
    teacher = None if support == "teacher_topk" else session.source.teacher
    found = measure(rollouts, scores, teacher=teacher)
    assert set(found) == set(OVERLAP)
    for name, mean in found.items():
        # the sampler decodes token by token, the trainer in one pass: fp32 rounding
        assert mean.value == pytest.approx(logged[name], rel=1e-3, abs=1e-5), name


def test_what_is_missing_is_said(make_lm, make_prompts):
    from opd.samplers.hf import Decoding, HFSampler

    lm = make_lm(0)
    rollouts = HFSampler(lm, Decoding(3), stop=frozenset(), capture=4).sample(
        make_prompts(3), n=1, key=(0,)
    )
    with pytest.raises(ValueError, match="fewer than k=16"):
        measure(rollouts)
    with pytest.raises(ValueError, match="no teacher to ask"):
        measure(rollouts, k=4)
    assert np.isfinite(rollouts[0].topk_logp).all()
