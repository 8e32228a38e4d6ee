"""The self-check passes on honest pairs and names what a broken step breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opd.config import Optim
from opd.core.objective import Objective
from opd.recipes import invariants
from opd.recipes.invariants import Subject, self_check
from opd.training.learner import Learner
from opd.training.optimizer import make_optimizer


def subject(make_lm, make_prompts, dtype=torch.float64, **objective):
    student, teacher = make_lm(0, dtype=dtype), make_lm(1, dtype=dtype)
    optim = Optim(lr=0.01)
    learner = Learner(
        student=student,
        optimizer=make_optimizer(student, optim),
        objective=Objective(**({"k": 4} | objective)),
        optim=optim,
        tokens_per_microbatch=1000,
        teacher_logits=teacher.head.logits,
        teacher_temperature=1.0,
        diagnostics_k=4,
        position_edges=[0, 16],
    )
    return Subject(learner, teacher, make_prompts(3, 6, 4), frozenset({1}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "objective",
    [{}, {"mode": "tail"}, {"mode": "reference"}, {"support": "full"}, {"support": "sampled"}],
)
def test_every_invariant_holds(make_lm, make_prompts, dtype, objective):
    verdicts = self_check(subject(make_lm, make_prompts, dtype, **objective))
    assert len(verdicts) == 7
    assert [v.name for v in verdicts if not v.holds] == []


@pytest.mark.parametrize(
    ("objective", "heat"),
    [({"student_temperature": 2.0}, 2.0), ({"student_temperature": 2.0}, 1.0),
     ({"outcome_weight": 1.0}, 1.0), ({"entropy_forward_kl": 0.5}, 1.0)],
)  # fmt: skip
def test_temperatures_and_terms_break_no_invariant(make_lm, make_prompts, objective, heat):
    given = subject(make_lm, make_prompts, **objective)
    given = replace(given, learner=replace(given.learner, teacher_temperature=heat))
    verdicts = self_check(given)
    assert len(verdicts) == 7 - ("entropy_forward_kl" in objective)
    assert [v.name for v in verdicts if not v.holds] == []


def broken(verdicts):
    return {v.name for v in verdicts if not v.holds}


def test_a_shifted_alignment_is_named(make_lm, make_prompts, monkeypatch):
    honest = invariants.Batch

    def shifted(rollouts, scores, **kwargs):
        moved = [replace(r, ids=r.ids[::-1].copy()) for r in rollouts]
        return honest(moved, scores, **kwargs)

    monkeypatch.setattr(invariants, "Batch", shifted)
    monkeypatch.setattr(invariants, "_fresh", _of_forward_order(invariants._fresh))
    names = broken(self_check(subject(make_lm, make_prompts)))
    assert "every completion token is predicted by the position before it" in names


def _of_forward_order(fresh):
    return lambda lm, r: fresh(lm, replace(r, ids=r.ids[::-1].copy()))


def test_a_sampler_at_another_temperature_is_named(make_lm, make_prompts, monkeypatch):
    honest = invariants.Decoding
    monkeypatch.setattr(invariants, "Decoding", lambda n: honest(n, temperature=0.7))
    names = broken(self_check(subject(make_lm, make_prompts)))
    assert "the sampler's log-probs are the trainer's" in names
