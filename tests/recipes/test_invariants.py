"""The invariants hold on correct pairs, and each kind of broken step is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opd.config import Optim
from opd.core.objective import Objective
from opd.recipes import invariants
from opd.recipes.invariants import Subject, check_invariants
from opd.teachers.local import LocalTeacher
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
    results = check_invariants(subject(make_lm, make_prompts, dtype, **objective))
    assert len(results) == 7
    assert [r.name for r in results if not r.holds] == []


@pytest.mark.parametrize(
    ("objective", "temperature"),
    [({"student_temperature": 2.0}, 2.0), ({"student_temperature": 2.0}, 1.0),
     ({"outcome_weight": 1.0}, 1.0), ({"entropy_forward_kl": 0.5}, 1.0)],
)  # fmt: skip
def test_temperatures_and_terms_break_no_invariant(make_lm, make_prompts, objective, temperature):
    pair = subject(make_lm, make_prompts, **objective)
    pair = replace(pair, learner=replace(pair.learner, teacher_temperature=temperature))
    results = check_invariants(pair)
    assert len(results) == 7 - ("entropy_forward_kl" in objective)
    assert [r.name for r in results if not r.holds] == []


def broken(results):
    return {r.name for r in results if not r.holds}


def test_a_shifted_alignment_is_named(make_lm, make_prompts, monkeypatch):
    honest = invariants.Batch

    def shifted(rollouts, scores, **kwargs):
        moved = [replace(r, ids=r.ids[::-1].copy()) for r in rollouts]
        return honest(moved, scores, **kwargs)

    monkeypatch.setattr(invariants, "Batch", shifted)
    monkeypatch.setattr(invariants, "_reference_logp", _reversed_again(invariants._reference_logp))
    names = broken(check_invariants(subject(make_lm, make_prompts)))
    assert "every completion token is predicted by the position before it" in names


def _reversed_again(reference):
    return lambda lm, r: reference(lm, replace(r, ids=r.ids[::-1].copy()))


def test_a_sampler_at_another_temperature_is_named(make_lm, make_prompts, monkeypatch):
    honest = invariants.Decoding
    monkeypatch.setattr(invariants, "Decoding", lambda n: honest(n, temperature=0.7))
    names = broken(check_invariants(subject(make_lm, make_prompts)))
    assert "the sampler's log-probs are the trainer's" in names


def test_a_loss_divided_by_its_micro_batch_is_named(make_lm, make_prompts, monkeypatch):
    correct = invariants.microbatch_loss
    monkeypatch.setattr(
        invariants,
        "microbatch_loss",
        lambda learner, micro, hidden: correct(learner, micro, hidden) / len(hidden),
    )
    names = broken(check_invariants(subject(make_lm, make_prompts)))
    assert names == {"any split into micro-batches is the same update"}


def test_a_server_that_is_wrong_on_long_prompts_alone_is_named(make_lm, make_prompts):
    honest, other = LocalTeacher(make_lm(1)), LocalTeacher(make_lm(2))
    case = subject(make_lm, make_prompts)
    longest = max(len(prompt.ids) for prompt in case.prompts)

    class WrongOnLong:
        name, kinds = "server", honest.kinds

        def score(self, rollouts, want):
            models = [other if len(r.prompt.ids) == longest else honest for r in rollouts]
            return [m.score([r], want)[0] for m, r in zip(models, rollouts, strict=True)]

    results = check_invariants(replace(case, server=WrongOnLong()))
    assert broken(results) == {"the teacher server scores as the local model does"}


@pytest.mark.parametrize("seed", [1, 2])
def test_a_server_of_another_model_is_named(make_lm, make_prompts, seed):
    server = LocalTeacher(make_lm(seed))
    results = check_invariants(replace(subject(make_lm, make_prompts), server=server))
    assert len(results) == 8
    expected = set() if seed == 1 else {"the teacher server scores as the local model does"}
    assert broken(results) == expected
