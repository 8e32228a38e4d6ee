"""`opd verify`: the invariants of the mathematics, checked on the user's own pair.

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
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.teachers.local import LocalTeacher
from opd.teachers.repeats import score_differences
from opd.training.gradient import forward, microbatch_loss
from opd.training.learner import Learner
from opd.types import Prompt, Rollout, Teacher, Want

PROMPTS, SAMPLES, TOKENS = 2, 2, 12
MARGIN = 4  # times the largest difference that was measured
MEASURED_RANGE = 0.1, 0.5  # nats, of the tolerance where it follows from a measurement
SPOT_CHECKED = 16  # rollouts of a server that are compared with the weights


@dataclass(frozen=True)
class InvariantResult:
    """One invariant.

    Attributes:
        name: what must hold.
        measured: how far it is from that.
        allowed: largest value that passes.
        meaning: what was measured, with its unit.
    """

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
    """The pair as a run would use it.

    Attributes:
        learner: updates the student.
        teacher: the model in this process.
        prompts: of which the first few are used.
        stop: token ids that end a completion.
        server: a configured teacher server, to be compared with `teacher`.
    """

    learner: Learner
    teacher: LM
    prompts: Sequence[Prompt]
    stop: frozenset[int]
    server: Teacher | None = None


def check_invariants(subject: Subject) -> list[InvariantResult]:
    """Check every invariant on a few short rollouts of the student.

    Returns:
        One result per invariant, in the order in which a training step depends on them.
    """
    # The outcome reward needs graded groups, and does not depend on the teacher: left out here.
    objective = replace(subject.learner.objective, outcome_weight=0.0)
    learner = replace(subject.learner, objective=objective)
    rollouts = _sample(subject)
    teacher = LocalTeacher(subject.teacher, temperature=learner.teacher_temperature)
    batch = _score(learner, teacher, rollouts)
    tolerance = logp_tolerance(learner.student, rollouts)
    results = [
        _check_shift(learner.student, batch, tolerance),
        _check_sampler(learner.student, rollouts, tolerance),
        _check_batch_independence(subject, rollouts),
        *_check_equal_teacher(learner, rollouts, tolerance),
        _check_prompt_gradient(learner, batch),
        *_check_micro_batches(learner, batch, subject.teacher, tolerance),
    ]
    if subject.server is not None:
        results.append(_check_server(subject, teacher, learner, tolerance))
    return results


def logp_tolerance(lm: LM, rollouts: Sequence[Rollout]) -> float:
    """Largest log-prob difference that two orders of summation explain, in nats.

    Logits are of the order of 20 and carry seven significant digits in float32. In lower precision
    the noise is measured: how far the model's own forward passes of these rollouts differ, alone
    and beside others. Of few tokens the largest is not the largest there is, hence the margin.
    """
    exact = {torch.float64: 1e-8, torch.float32: 2e-3}.get(lm.causal.dtype)
    if exact is not None:
        return exact
    low, high = MEASURED_RANGE
    return min(high, max(low, MARGIN * measured_noise(lm, rollouts)))


@torch.no_grad()
def measured_noise(lm: LM, rollouts: Sequence[Rollout]) -> float:
    """Largest difference between a model's own forwards of a rollout alone and beside others."""
    rows = [[*r.prompt.ids, *r.ids.tolist()] for r in rollouts if len(r)]
    width = max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.long, device=lm.device)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    together = lm.causal(input_ids=ids, attention_mask=mask, use_cache=False).logits
    largest = 0.0
    for row, tokens in enumerate(rows):
        alone = lm.causal(input_ids=ids[row : row + 1, : len(tokens)], use_cache=False).logits[0]
        pair = (x[:, : lm.vocab].double() for x in (alone, together[row, : len(tokens)]))
        scores = [x.log_softmax(-1)[:-1].gather(1, ids[row, 1 : len(tokens), None]) for x in pair]
        largest = max(largest, float((scores[0] - scores[1]).abs().max()))
    return largest


def _score(learner: Learner, teacher: Teacher, rollouts: Sequence[Rollout]) -> Batch:
    """Rollouts with everything the loss needs of the teacher."""
    full = [np.arange(len(r)) for r in rollouts]
    return Batch(rollouts, teacher.score(rollouts, learner.objective.want._replace(full=full)))


def _sample(
    subject: Subject,
    rows: int = 64,
    *,
    prompts: Sequence[Prompt] | None = None,
    samples: int = SAMPLES,
) -> list[Rollout]:
    """A few short rollouts, `rows` of them decoded at once; by default of the first prompts."""
    prompts = subject.prompts[:PROMPTS] if prompts is None else prompts
    sampler = HFSampler(
        subject.learner.student,
        Decoding(TOKENS),
        stop=subject.stop,
        capture=subject.learner.objective.k,
        batch=rows,
    )
    return sampler.sample(prompts, n=samples, key=key(0, Stream.INVARIANTS))


@torch.no_grad()
def _reference_logp(lm: LM, rollout: Rollout) -> torch.Tensor:
    """Log-probs (T,) of the sampled tokens by the model's own forward pass and none of our code.

    Its shift is deliberately not `core.batch.predicting_positions`, which is what it checks.
    """
    ids = torch.tensor([[*rollout.prompt.ids, *rollout.ids.tolist()]], device=lm.device)
    first = len(rollout.prompt.ids) - 1
    logits = lm.causal(input_ids=ids, use_cache=False).logits[0, first:-1, : lm.vocab]
    sampled = torch.from_numpy(rollout.ids).long().to(lm.device)
    logp: torch.Tensor = logits.double().log_softmax(-1).gather(1, sampled[:, None])[:, 0].cpu()
    return logp


@torch.no_grad()
def _check_shift(student: LM, batch: Batch, tolerance: float) -> InvariantResult:
    micro = batch.microbatch(range(len(batch.rollouts)), student.device, k=1)
    states = student.hidden(micro.input_ids)[micro.rows, micro.cols]
    logp = student.head.logits(states).double().log_softmax(-1)
    sampled_logp = logp.gather(1, micro.tokens.targets[:, None])[:, 0].cpu()
    reference = torch.cat([_reference_logp(student, r) for r in batch.rollouts])
    return InvariantResult(
        "every completion token is predicted by the position before it",
        float((sampled_logp - reference).abs().max()),
        tolerance,
        "largest difference to the model's own forward pass, nats",
    )


def _check_sampler(student: LM, rollouts: Sequence[Rollout], tolerance: float) -> InvariantResult:
    gaps = [np.abs(_reference_logp(student, r).numpy() - r.logp).max() for r in rollouts if len(r)]
    return InvariantResult(
        "the sampler's log-probs are the trainer's",
        float(max(gaps)),
        tolerance,
        "largest difference, nats",
    )


def _check_batch_independence(subject: Subject, rollouts: Sequence[Rollout]) -> InvariantResult:
    alone = _sample(subject, rows=1)
    differ = sum(a.ids.tolist() != b.ids.tolist() for a, b in zip(rollouts, alone, strict=True))
    # Below fp64 a random number within rounding of a boundary may select either token.
    exact = subject.learner.student.causal.dtype == torch.float64
    return InvariantResult(
        "a rollout does not depend on its batch",
        differ / len(rollouts),
        0.0 if exact else 0.5,
        "fraction of rollouts that differ when sampled alone (rounding may change a rare token)",
    )


def _check_equal_teacher(
    learner: Learner, rollouts: Sequence[Rollout], tolerance: float
) -> list[InvariantResult]:
    if learner.objective.entropy_forward_kl is not None:
        return []  # a truncated forward KL has a gradient even at the teacher
    temperature = learner.objective.student_temperature
    equal = replace(
        learner, teacher_logits=learner.student.head.logits, teacher_temperature=temperature
    )
    batch = _score(equal, LocalTeacher(learner.student, temperature=temperature), rollouts)
    norm, misaligned = (_norm(_gradient(equal, b)) for b in (batch, _misalign(batch)))
    return [
        InvariantResult(
            "a teacher equal to the student teaches nothing",
            norm / max(misaligned, 1e-30),
            max(tolerance, 1e-3),
            "gradient norm, relative to the norm when its scores are given to other tokens",
        )
    ]


def _misalign(batch: Batch) -> Batch:
    """The same scores on the wrong positions, as those of a misaligned teacher."""
    assert batch.scores is not None
    moved = []
    for s in batch.scores:
        rolled: dict[str, Any] = {n: np.roll(x, 1, axis=0) for n, x in s.arrays().items()}
        hidden = None if s.hidden is None else s.hidden.roll(1, 0)
        moved.append(replace(s, hidden=hidden, **rolled))
    return replace(batch, scores=moved)


def _check_prompt_gradient(learner: Learner, batch: Batch) -> InvariantResult:
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
    return InvariantResult(
        "prompt and padding positions get no gradient",
        float(hidden.grad[~predicts].abs().max()) if (~predicts).any() else 0.0,
        0.0,
        "largest gradient outside the completions; exactly 0",
    )


def _check_micro_batches(
    learner: Learner, batch: Batch, teacher: LM, tolerance: float
) -> list[InvariantResult]:
    weights = list(teacher.model.parameters())
    sums = [p.detach().double().sum().item() for p in weights]
    whole = _gradient(learner, batch)
    teacher_changes = [
        abs(p.detach().double().sum().item() - before) + (0.0 if p.grad is None else 1.0)
        for p, before in zip(weights, sums, strict=True)
    ]
    others = [_gradient(learner, batch, batch.plan(Budget(1), share_prompts=False))]
    if supports_prefix_cache(learner.student):
        others.append(_gradient(learner, batch, [_shared_prompts(batch)]))
    difference = max(_norm([a - b for a, b in zip(whole, other, strict=True)]) for other in others)
    return [
        InvariantResult(
            "any split into micro-batches is the same update",
            difference / max(_norm(whole), 1e-30),
            max(tolerance, 1e-6),
            "largest relative gradient difference: one micro-batch, row by row, shared prompts",
        ),
        InvariantResult(
            "the teacher gets no gradient and does not change",
            max(teacher_changes),
            0.0,
            "change of its weights plus number of its gradients; exactly 0",
        ),
    ]


def _check_server(
    subject: Subject, teacher: LocalTeacher, learner: Learner, tolerance: float
) -> InvariantResult:
    """A spot check against the weights: rollouts to prompts of all lengths, the longest too."""
    prompts = sorted(subject.prompts, key=lambda prompt: len(prompt.ids))
    places = np.unique(np.linspace(0, len(prompts) - 1, SPOT_CHECKED).round().astype(int))
    rollouts = _sample(subject, prompts=[prompts[i] for i in places], samples=1)
    want = learner.objective.want._replace(sampled=True)
    assert subject.server is not None
    return InvariantResult(
        "the teacher server scores as the local model does",
        largest_score_difference(teacher, subject.server, rollouts, want),
        tolerance,
        f"largest difference of any score the loss asks for, {len(rollouts)} rollouts, nats",
    )


def largest_score_difference(
    local: Teacher, server: Teacher, rollouts: Sequence[Rollout], want: Want
) -> float:
    """Largest difference between two teachers in any score of `want`, in nats."""
    pairs = zip(local.score(rollouts, want), server.score(rollouts, want), strict=True)
    return max(score_differences(a, b).largest for a, b in pairs)


def _shared_prompts(batch: Batch) -> MicroBatchGroup:
    """The whole step as one group with shared prompts, whatever its memory."""
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
    gradient = [
        torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for p in student.parameters().values()
    ]
    student.model.zero_grad(set_to_none=True)
    return gradient


def _norm(gradient: Sequence[torch.Tensor]) -> float:
    total: float = sum(float(g.double().square().sum()) for g in gradient)
    return math.sqrt(total)
