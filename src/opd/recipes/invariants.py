"""`opd check --self`: the invariants of the mathematics, run on the user's own pair.

Each is a statement that must hold whatever the models are; a violation means that training would
optimise something else than the configuration says. Shapes: N positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from opd.core.batch import Batch
from opd.core.microbatches import Budget, MicroBatchGroup, rows_by_prompt
from opd.models.lm import LM
from opd.models.prefix_cache import supports_prefix_cache
from opd.rng import Stream, key
from opd.samplers.hf import Decoding, HFSampler
from opd.teachers.local import LocalTeacher
from opd.training.gradient import forward, microbatch_loss
from opd.training.learner import Learner
from opd.types import Prompt, Rollout, Teacher

PROMPTS, SAMPLES, TOKENS = 2, 2, 12


@dataclass(frozen=True)
class Verdict:
    """One invariant: what must hold, what was measured, and the largest value that passes."""

    name: str
    measured: float
    allowed: float
    meaning: str

    @property
    def holds(self) -> bool:
        """Whether it does; NaN does not."""
        return self.measured <= self.allowed


@dataclass(frozen=True)
class Subject:
    """What is checked: the pair as a run would use it."""

    learner: Learner
    teacher: LM
    prompts: Sequence[Prompt]
    stop: frozenset[int]
    server: Teacher | None = None  # a configured teacher server, to hold against the local model


def self_check(subject: Subject) -> list[Verdict]:
    """Run every invariant on a few short rollouts of the student.

    Returns:
        One verdict an invariant, in the order of one prompt's way through a step.
    """
    # The outcome reward needs graded groups, and says nothing about the teacher: left out here.
    objective = replace(subject.learner.objective, outcome_weight=0.0)
    learner = replace(subject.learner, objective=objective)
    rollouts = _rollouts(subject)
    heat = learner.teacher_temperature
    batch = score(learner, LocalTeacher(subject.teacher, temperature=heat), rollouts)
    noise = rounding(learner.student)
    verdicts = [
        _shift(learner.student, batch, noise),
        _sampler(learner.student, rollouts, noise),
        _composition(subject, rollouts),
        *_same_model(learner, rollouts, noise),
        _prompt_gradient(learner, batch),
        *_split(learner, batch, subject.teacher, noise),
    ]
    if subject.server is not None:
        verdicts.append(_server(subject, rollouts, noise))
    return verdicts


def rounding(lm: LM) -> float:
    """Largest log-prob difference that two orders of summation explain, in nats.

    Logits are of the order of 20 and carry about three significant digits in bf16, seven in fp32.
    """
    return {torch.float64: 1e-8, torch.float32: 2e-3}.get(lm.causal.dtype, 0.5)


def score(learner: Learner, teacher: Teacher, rollouts: Sequence[Rollout]) -> Batch:
    """Rollouts and everything the loss asks of the teacher, aligned."""
    full = [np.arange(len(r)) for r in rollouts]
    return Batch(rollouts, teacher.score(rollouts, learner.objective.want._replace(full=full)))


def _rollouts(subject: Subject, batch: int = 64) -> list[Rollout]:
    sampler = HFSampler(
        subject.learner.student,
        Decoding(TOKENS),
        stop=subject.stop,
        capture=subject.learner.objective.k,
        batch=batch,
    )
    return sampler.sample(subject.prompts[:PROMPTS], n=SAMPLES, key=key(0, Stream.INVARIANTS))


@torch.no_grad()
def _fresh(lm: LM, rollout: Rollout) -> torch.Tensor:
    """Log-probs (T,) of the sampled tokens by the model's own whole forward, nothing of ours.

    Its shift is deliberately not `core.batch.predicting_positions`, which is what it checks.
    """
    ids = torch.tensor([[*rollout.prompt.ids, *rollout.ids.tolist()]], device=lm.device)
    first = len(rollout.prompt.ids) - 1
    logits = lm.causal(input_ids=ids, use_cache=False).logits[0, first:-1, : lm.vocab]
    drawn = torch.from_numpy(rollout.ids).long().to(lm.device)
    found: torch.Tensor = logits.double().log_softmax(-1).gather(1, drawn[:, None])[:, 0].cpu()
    return found


@torch.no_grad()
def _shift(student: LM, batch: Batch, noise: float) -> Verdict:
    micro = batch.microbatch(range(len(batch.rollouts)), student.device, k=1)
    states = student.hidden(micro.input_ids)[micro.rows, micro.cols]
    logp = student.head.logits(states).double().log_softmax(-1)
    ours = logp.gather(1, micro.tokens.targets[:, None])[:, 0].cpu()
    fresh = torch.cat([_fresh(student, r) for r in batch.rollouts])
    return Verdict(
        "every completion token is predicted by the position before it",
        float((ours - fresh).abs().max()),
        noise,
        "largest difference to the model's own forward, nats",
    )


def _sampler(student: LM, rollouts: Sequence[Rollout], noise: float) -> Verdict:
    gaps = [np.abs(_fresh(student, r).numpy() - r.logp).max() for r in rollouts if len(r)]
    return Verdict(
        "the sampler's log-probs are the trainer's",
        float(max(gaps)),
        noise,
        "largest difference, nats",
    )


def _composition(subject: Subject, rollouts: Sequence[Rollout]) -> Verdict:
    alone = _rollouts(subject, batch=1)
    differ = sum(a.ids.tolist() != b.ids.tolist() for a, b in zip(rollouts, alone, strict=True))
    # A draw within rounding of a boundary may fall on either side below fp64.
    exact = subject.learner.student.causal.dtype == torch.float64
    return Verdict(
        "a rollout does not depend on its batch",
        differ / len(rollouts),
        0.0 if exact else 0.5,
        "share of rollouts that differ when sampled alone (rounding may flip a rare draw)",
    )


def _same_model(learner: Learner, rollouts: Sequence[Rollout], noise: float) -> list[Verdict]:
    if learner.objective.entropy_forward_kl is not None:
        return []  # a truncated forward KL pulls even at the teacher; there is nothing to hold
    heat = learner.objective.student_temperature
    logits = learner.student.head.logits
    twin = replace(learner, teacher_logits=logits, teacher_temperature=heat)
    batch = score(twin, LocalTeacher(learner.student, temperature=heat), rollouts)
    gradient, other = _gradient(twin, batch), _gradient(twin, _shuffled(batch))
    return [
        Verdict(
            "a teacher equal to the student teaches nothing",
            _norm(gradient) / max(_norm(other), 1e-30),
            max(noise, 1e-3),
            "gradient norm, as a share of the norm when its scores are given to other tokens",
        )
    ]


def _shuffled(batch: Batch) -> Batch:
    """The same scores on the wrong positions: what a misaligned teacher would look like."""
    assert batch.scores is not None
    moved = []
    for s in batch.scores:
        rolled: dict[str, Any] = {n: np.roll(x, 1, axis=0) for n, x in s.arrays().items()}
        hidden = None if s.hidden is None else s.hidden.roll(1, 0)
        moved.append(replace(s, hidden=hidden, **rolled))
    return replace(batch, scores=moved)


def _prompt_gradient(learner: Learner, batch: Batch) -> Verdict:
    student = learner.student
    micro = batch.microbatch(range(len(batch.rollouts)), student.device, k=learner.objective.k)
    with torch.no_grad():
        hidden = student.hidden(micro.input_ids)
    hidden.requires_grad_()
    microbatch_loss(learner, micro, hidden[micro.rows, micro.cols]).backward()  # type: ignore[no-untyped-call]
    student.model.zero_grad(set_to_none=True)
    assert hidden.grad is not None
    predicts = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    predicts[micro.rows, micro.cols] = True
    return Verdict(
        "prompt and padding positions get no gradient",
        float(hidden.grad[~predicts].abs().max()) if (~predicts).any() else 0.0,
        0.0,
        "largest gradient outside the completions; exactly 0",
    )


def _split(learner: Learner, batch: Batch, teacher: LM, noise: float) -> list[Verdict]:
    weights = list(teacher.model.parameters())
    before = [p.detach().double().sum().item() for p in weights]
    whole = _gradient(learner, batch)
    moved = [
        abs(p.detach().double().sum().item() - b) + (0.0 if p.grad is None else 1.0)
        for p, b in zip(weights, before, strict=True)
    ]
    others = [_gradient(learner, batch, batch.plan(Budget(1), share_prompts=False))]
    if supports_prefix_cache(learner.student):
        others.append(_gradient(learner, batch, [_prompts_once(batch)]))
    difference = max(_norm([a - b for a, b in zip(whole, other, strict=True)]) for other in others)
    return [
        Verdict(
            "any split into micro-batches is the same update",
            difference / max(_norm(whole), 1e-30),
            max(noise, 1e-6),
            "largest gradient difference: in one, row by row, each prompt run once; relative",
        ),
        Verdict(
            "the teacher gets no gradient and does not move",
            max(moved),
            0.0,
            "change of its weights plus gradients found; exactly 0",
        ),
    ]


def _server(subject: Subject, rollouts: Sequence[Rollout], noise: float) -> Verdict:
    assert subject.server is not None
    want = subject.learner.objective.want._replace(sampled=True)
    heat = subject.learner.teacher_temperature
    local = LocalTeacher(subject.teacher, temperature=heat).score(rollouts, want)
    remote = subject.server.score(rollouts, want)
    gaps = [
        np.abs(a.sampled - b.sampled).max()
        for a, b in zip(local, remote, strict=True)
        if a.sampled is not None and b.sampled is not None and len(a.sampled)
    ]
    return Verdict(
        "the teacher server scores as the local model does",
        float(max(gaps)),
        noise,
        "largest difference, nats",
    )


def _prompts_once(batch: Batch) -> MicroBatchGroup:
    """The whole step with shared prompts, whatever it costs."""
    rows = [row for row, rollout in enumerate(batch.rollouts) if len(rollout)]
    rows_of = rows_by_prompt([batch.rollouts[row].prompt.ids for row in rows])
    prompt_rows = [[rows[i] for i in own] for own in rows_of.values()]
    return MicroBatchGroup([[row for own in prompt_rows for row in own]], prompt_rows)


def _gradient(
    learner: Learner, batch: Batch, groups: Sequence[MicroBatchGroup] | None = None
) -> list[torch.Tensor]:
    """Gradient of the step's loss to every trainable parameter, without touching the optimizer."""
    student = learner.student
    student.model.zero_grad(set_to_none=True)
    groups = groups or batch.plan(Budget(10**9), share_prompts=False)
    for micro, hidden in forward(learner, batch, groups):
        (microbatch_loss(learner, micro, hidden) / batch.num_tokens).backward()  # type: ignore[no-untyped-call]
    found = [
        torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for p in student.parameters().values()
    ]
    student.model.zero_grad(set_to_none=True)
    return found


def _norm(gradient: Sequence[torch.Tensor]) -> float:
    total: float = sum(float(g.double().square().sum()) for g in gradient)
    return math.sqrt(total)
