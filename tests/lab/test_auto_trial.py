"""The trial of `recipe: auto`: what counts as tokens, and what the table claims."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from opd.demo.run_config import PAIR
from opd.models.lm import load_lm
from opd.rng import Stream, key
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.training.finish import goes_back
from opd.types import Prompt
from opd_lab.auto_trial import FAILING, HEALTHY, arm_config, metered
from opd_lab.auto_trial_table import ARMS, Trial, claims, render_trials
from opd_lab.calibration.grid import PREFIX
from opd_lab.checkpoints import RECIPES
from opd_lab.runs import Task, run_config
from opd_lab.worlds import Chain


def test_training_counts_and_evaluation_does_not():
    lm = load_lm(str(PAIR / "student"))
    sampler = HFSampler(lm, Decoding(5), stop=frozenset(), capture=1)
    prompts = [Prompt(0, (3, 4, 5), ""), Prompt(1, (4, 5), "")]
    with metered(budget=25) as meter:
        sampler.sample(prompts, n=1, key=key(0, Stream.EVALUATION))
        assert meter.tokens == 0
        sampler.sample(prompts, n=2, key=key(0, Stream.ROLLOUT, 0))
        assert meter.tokens == 20
        assert not meter.stop.is_set()
        sampler.sample(prompts, n=1, key=key(0, Stream.ROLLOUT, 1))
        assert meter.stop.is_set()
    sampler.sample(prompts, n=1, key=key(0, Stream.ROLLOUT, 2))
    assert meter.tokens == 30


@pytest.mark.parametrize("keeps", [True, False])
def test_a_stopped_run_of_auto_goes_back_where_a_finished_one_would(keeps):
    for best, last, back in (((0, 0.5), 0.46, True), ((0, 0.5), 0.48, False), (None, 0.1, False)):
        course = SimpleNamespace(keeps_best=keeps, best=best)
        assert goes_back(course, last) == (back and keeps)


def trial(kind, plain, auto, cold=0.2):
    """A trial whose arms ended at these accuracies, from .2 with a teacher of 1."""
    arms = {"plain": {"before": 0.2, "teacher": 1.0, "after": plain}, "auto": auto}
    if kind == "failing":
        arms |= {name: {"after": cold} for name in ("cold start", "select", "horizon")}
    spent = {"tokens": 3, "steps": 0}
    record = {"pair": ["chain", "a", "b"], "kind": kind, "seed": 0, "budget": 3}
    return Trial.parse(record | {"arms": {name: spent | arm for name, arm in arms.items()}})


def test_a_pair_counts_only_if_plain_fails_and_a_rescue_works():
    works = trial("failing", 0.2, {"after": 0.9}, cold=0.9)
    no_rescue = trial("failing", 0.2, {"after": 0.2}, cold=0.3)
    no_need = trial("failing", 0.8, {"after": 0.2}, cold=0.9)
    claim, hopeless = claims([works, no_rescue, no_need])
    assert "at least half: 1 pairs; auto recovers at least .8 of the best rescue on 1" in claim
    assert "No arm recovers half: 1 pairs; auto minus before +0.000" in hopeless
    rows = render_trials([works, no_rescue, no_need]).splitlines()[2:5]
    assert [row.split("|")[-2].strip() for row in rows] == ["1.00", "", ""]


def test_a_refused_pair_stays_where_it_was():
    refused = trial("failing", 0.2, {"refused": "why"}, cold=0.9)
    assert "on 0, 0.00 on average" in claims([refused])[-1]
    assert "-0.500 at worst" in claims([trial("healthy", 0.7, {"refused": "why"})])[-1]


def test_a_trial_survives_its_line():
    made = trial("failing", 0.2, {"after": 0.9, "cold_rounds": 2, "alarms": ["x at 3"]})
    assert Trial.parse(json.loads(json.dumps(asdict(made)))) == made


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_configuration(arm, tmp_path):
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "task")}
    task = Task(Chain(depth=4))
    data = run_config(PAIR / "student", PAIR / "teacher", task, files, 0, tmp_path / "run")
    cfg = arm_config(arm, data, tmp_path)
    set_by = {"cold start": cfg.coldstart, "select": cfg.select, "horizon": cfg.horizon}
    assert {name for name, section in set_by.items() if section is not None} == {arm} & {*set_by}
    assert (cfg.recipe == "auto") == (arm == "auto")


def test_every_pair_names_checkpoints_of_the_grid():
    for _, (world, *kinds) in (*FAILING, *HEALTHY):
        assert all(f"{PREFIX}{world}-{kind}" in RECIPES for kind in kinds)
    assert len(HEALTHY) >= 10
