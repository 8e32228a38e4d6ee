"""The trial of `recipe: auto`: what counts as tokens, and what the table claims."""

from __future__ import annotations

from threading import Event

from opd.demo.run_config import PAIR
from opd.models.lm import load_lm
from opd.rng import Stream, key
from opd.samplers.hf import Decoding, HFSampler
from opd.types import Prompt
from opd_lab.auto_trial import FAILING, HEALTHY, metered, told
from opd_lab.calibration.grid import PREFIX
from opd_lab.checkpoints import RECIPES


def test_training_counts_and_evaluation_does_not():
    lm = load_lm(str(PAIR / "student"))
    sampler = HFSampler(lm, Decoding(5), stop=frozenset(), capture=1)
    prompts = [Prompt(0, (3, 4, 5), ""), Prompt(1, (4, 5), "")]
    with metered(budget=25) as meter:
        meter.stop = Event()
        sampler.sample(prompts, n=1, key=key(0, Stream.EVALUATION))
        assert meter.tokens == 0
        sampler.sample(prompts, n=2, key=key(0, Stream.ROLLOUT, 0))
        assert meter.tokens == 20
        assert not meter.stop.is_set()
        sampler.sample(prompts, n=1, key=key(0, Stream.ROLLOUT, 1))
        assert meter.stop.is_set()
    sampler.sample(prompts, n=1, key=key(0, Stream.ROLLOUT, 2))
    assert meter.tokens == 30


def one(kind, plain, auto, cold=0.2):
    arms = {"plain": {"before": 0.2, "teacher": 1.0, "after": plain}, "auto": auto}
    if kind == "failing":
        arms |= {name: {"after": cold} for name in ("cold start", "select", "horizon")}
    return {"pair": ["chain", "a", "b"], "kind": kind, "seed": 0, "arms": arms}


def test_a_pair_counts_only_if_plain_fails_and_a_rescue_works():
    works = one("failing", 0.2, {"after": 0.9}, cold=0.9)
    no_rescue = one("failing", 0.2, {"after": 0.2}, cold=0.3)
    no_need = one("failing", 0.8, {"after": 0.2}, cold=0.9)
    lines = told([works, no_rescue, no_need])
    assert "at least half: 1 pairs; auto recovers at least .8 of the best rescue on 1" in lines[-1]


def test_a_refused_pair_stays_where_it_was():
    refused = one("failing", 0.2, {"refused": "why", "tokens": 3, "steps": 0}, cold=0.9)
    assert "on 0, 0.00 on average" in told([refused])[-1]
    assert "-0.500 at worst" in told([one("healthy", 0.7, {"refused": "why"})])[-1]


def test_every_pair_names_checkpoints_of_the_grid():
    for _, (world, *kinds) in (*FAILING, *HEALTHY):
        assert all(f"{PREFIX}{world}-{kind}" in RECIPES for kind in kinds)
    assert len(HEALTHY) >= 10
