"""The KL of held-out answers: one sample of a prompt, a few of a set, kept with the answer."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

import opd
from opd.demo.run_config import PAIR, PROMPTS
from opd.reports.answers import held_out_answers
from opd.reports.read import read_run
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.teachers.local import LocalTeacher
from opd.training import answer_kl
from opd.types import Prompt, Rollout, Scores
from support.ranks import run_ranks


def scorer(value):
    def score(rollouts, want):
        return [Scores(sampled=np.full(len(r), value, np.float32)) for r in rollouts]

    return SimpleNamespace(score=score)


def test_the_first_sample_of_each_prompt_is_measured(monkeypatch):
    rollouts = [Rollout.of_ids(Prompt(i, (1,), ""), [3, 4]) for i in range(3) for _ in range(2)]
    for k in (1, 3, 5):
        object.__setattr__(rollouts[k], "sample", 1)
    measured = answer_kl.sampled_kl(scorer(-0.5), scorer(-2.0), rollouts)
    assert measured == {0: 1.5, 2: 1.5, 4: 1.5}
    monkeypatch.setattr(answer_kl, "MEASURED", 2)
    assert set(answer_kl.sampled_kl(scorer(-0.5), scorer(-2.0), rollouts)) == {0, 2}
    assert answer_kl.sampled_kl(scorer(-0.5), scorer(-math.inf), rollouts) == {}


def test_several_processes_measure_what_one_does(make_lm, make_prompts):
    """The teacher was divided among them already, and nothing was measured."""
    lm, teacher = make_lm(), LocalTeacher(make_lm(1))
    sampler = HFSampler(lm, Decoding(6), stop=frozenset({1}), capture=4)
    rollouts = sampler.sample(make_prompts(3, 5, 2), n=2, key=(0,))
    cfg = SimpleNamespace(teacher=None)
    alone = answer_kl.answer_kl(cfg, lm, teacher)(rollouts)
    assert set(alone) == {0, 2, 4}
    for shared in run_ranks(lambda r: answer_kl.answer_kl(cfg, lm, teacher, r)(rollouts), 2):
        assert shared == pytest.approx(alone, abs=2e-6)


def test_a_run_keeps_it_and_the_list_sorts_by_it(tmp_path):
    rows = [
        json.loads(line) for line in (PROMPTS / "sum.jsonl").read_text("utf-8").splitlines()[:4]
    ]
    run = opd.Run(
        PAIR / "student",
        PAIR / "teacher",
        rows,
        output=tmp_path / "run",
        eval=[{"path": rows, "name": "sum", "n": 2}],
        rollout={"n": 1, "max_new_tokens": 16},
        train={"steps": 1, "prompts_per_step": 2},
        optim={"lr": 1e-4},
    )
    run.train(style="quiet")
    task = read_run(tmp_path / "run").evals[0]
    kept = [(g.sample, g.extra.get("kl")) for g in task.final.graded]
    assert [kl is not None for _, kl in kept] == [sample == 0 for sample, _ in kept]
    browse = held_out_answers(task)
    assert ("-kl", "largest KL first") in browse.sorts
    assert sum("kl" in row.values for row in browse.rows) == 4
    assert all("kl" in g.extra for g in task.student[0].graded if g.sample == 0)
    assert not any("kl" in g.extra for g in task.teacher.graded)
