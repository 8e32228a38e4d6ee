"""Rollouts and scores to tensors: the only shift, the only mask.

The hidden state at sequence position p predicts token p + 1, so completion token t of a prompt of
P tokens is predicted at position P - 1 + t. That is decided here and nowhere else. Everything after
this module is flat: one row a completion token, no prompt, no padding.
Shapes: B sequences, L padded length, N completion tokens of a micro-batch, K support, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opd.core.distributions import GivenView
from opd.core.microbatches import PASS_COST, Share, plan
from opd.core.objective import Positions
from opd.types import Rollout, Scores


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Some sequences of a step, padded for the backbone and flat for the loss."""

    input_ids: Tensor  # (B, L) right-padded; the last completion token is never an input
    owners: Tensor | None  # (B,) shared prompt that the row goes on from; None: its own is in it
    rows: Tensor  # (N,) sequence of each completion token
    cols: Tensor  # (N,) where its hidden state is
    at: Positions
    length: Tensor  # (N,) completion length of the token's rollout
    teacher: GivenView | None
    reference: GivenView | None
    teacher_topk_logp: Tensor | None  # (N, K') beside at.teacher_topk
    full: Tensor  # (n,) which of the N are diagnosed
    full_hidden: Tensor | None  # (n, H), where the teacher gave hidden states

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, part: slice) -> tuple[Positions, GivenView | None, GivenView | None]:
        """Positions, teacher and reference of some of the N completion tokens."""
        at = self.at
        chosen = Positions(
            targets=at.targets[part],
            student_topk=at.student_topk[part],
            teacher_topk=None if at.teacher_topk is None else at.teacher_topk[part],
            sampler_logp=at.sampler_logp[part],
            position=at.position[part],
            teacher_entropy=None if at.teacher_entropy is None else at.teacher_entropy[part],
            advantage=None if at.advantage is None else at.advantage[part],
            weight=at.weight[part],
            outcome=None if at.outcome is None else at.outcome[part],
        )
        teacher = None if self.teacher is None else self.teacher.part(part)
        return chosen, teacher, None if self.reference is None else self.reference.part(part)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A whole optimizer step: rollouts, their scores, and what is known of each rollout."""

    rollouts: Sequence[Rollout]
    scores: Sequence[Scores] | None
    reference: Sequence[Scores] | None
    rewards: np.ndarray | None  # (number of rollouts,) outcome
    advantages: np.ndarray | None  # (number of rollouts,) outcome against its group
    weights: Sequence[np.ndarray] | None  # (T,) a rollout; None is 1 everywhere
    gold: Sequence[Rollout] = ()  # completions to imitate beside the distillation
    outcome: Sequence[np.ndarray] | None = None  # (T,) a rollout, weights of the outcome term
    pruned: Sequence[np.ndarray] | None = None  # (T,) what the horizon left; `weights` has it too

    @property
    def num_tokens(self) -> int:
        """Completion tokens of the whole step: the denominator of the loss."""
        return sum(len(r) for r in self.rollouts)

    def split(self, budget: int) -> list[list[int]]:
        """Rollout indices in micro-batches of at most `budget` padded tokens; empty ones left out.

        Rows of like length together (`buckets`), longest first.
        """
        return [part for share in self.plan(budget, shared=False) for part in share.parts]

    def plan(
        self, budget: int, *, shared: bool, processes: int = 1, each: int = PASS_COST
    ) -> list[Share]:
        """`split`, or prompts run once for their responses where that costs less."""
        kept = [i for i, r in enumerate(self.rollouts) if len(r)]
        rows = [self.rollouts[i] for i in kept]
        shares = plan(
            [r.prompt.ids for r in rows],
            [len(r) - 1 for r in rows],
            budget,
            shared=shared,
            processes=processes,
            each=each,
        )
        return [
            Share(*([[kept[j] for j in rows] for rows in lists] for lists in (s.parts, s.groups)))
            for s in shares
        ]

    def micro(
        self,
        indices: Sequence[int],
        device: torch.device,
        *,
        k: int,
        owners: Sequence[int] | None = None,
    ) -> MicroBatch:
        """The tensors of some rollouts.

        Args:
            indices: which rollouts.
            device: where the tensors go.
            k: columns of the recorded support to keep.
            owners: for each of them, which of the prompts run before it goes on from (`Share`);
                None puts its own prompt into its row.
        """
        rollouts = [self.rollouts[i] for i in indices]
        before = [r.prompt.ids if owners is None else () for r in rollouts]
        # Of a shared prompt, one state is there: that of its last token.
        spans = [
            (len(ids) - 1 if owners is None else 0, len(r))
            for ids, r in zip(before, rollouts, strict=True)
        ]
        ids = pad_rows([[*p, *r.ids[:-1].tolist()] for p, r in zip(before, rollouts, strict=True)])
        put = _Flat(device)
        scores = None if self.scores is None else [self.scores[i] for i in indices]
        at = Positions(
            targets=put([r.ids for r in rollouts]),
            student_topk=put([r.topk_ids[:, :k] for r in rollouts]),
            teacher_topk=_column(put, scores, "topk_ids"),
            sampler_logp=put([r.logp for r in rollouts]),
            position=put([np.arange(t) for _, t in spans]),
            teacher_entropy=_column(put, scores, "entropy"),
            advantage=None
            if self.advantages is None
            else put([np.full(len(self.rollouts[i]), self.advantages[i]) for i in indices]),
            weight=put(
                [
                    np.ones(len(self.rollouts[i]), dtype=np.float32)
                    if self.weights is None
                    else self.weights[i]
                    for i in indices
                ]
            ),
            outcome=None if self.outcome is None else put([self.outcome[i] for i in indices]),
        )
        reference = None if self.reference is None else [self.reference[i] for i in indices]
        full, hidden = _full(scores, [t for _, t in spans], device)
        return MicroBatch(
            input_ids=ids.to(device),
            owners=None if owners is None else put([np.array(owners)]),
            rows=put([np.full(t, row) for row, (_, t) in enumerate(spans)]),
            cols=put([np.arange(first, first + t) for first, t in spans]),
            at=at,
            length=put([np.full(t, t) for _, t in spans]),
            teacher=_view(put, at, scores, k),
            reference=_view(put, at, reference, k),
            teacher_topk_logp=_column(put, scores, "topk_logp"),
            full=full,
            full_hidden=hidden,
        )


def align(
    rollouts: Sequence[Rollout],
    scores: Sequence[Scores] | None,
    *,
    reference: Sequence[Scores] | None = None,
    rewards: np.ndarray | None = None,
    advantages: np.ndarray | None = None,
    weights: Sequence[np.ndarray] | None = None,
    gold: Sequence[Rollout] = (),
    outcome: Sequence[np.ndarray] | None = None,
    pruned: Sequence[np.ndarray] | None = None,
) -> Batch:
    """Pair rollouts with their scores, checking that they belong together.

    Raises:
        ValueError: counts or lengths differ, or a score is not finite (docs: a teacher's answer is
            checked before it is used).
    """
    for name, given in (("teacher", scores), ("reference", reference)):
        if given is None:
            continue
        if len(given) != len(rollouts):
            raise ValueError(f"{name} scored {len(given)} rollouts of {len(rollouts)}")
        for i, (rollout, score) in enumerate(zip(rollouts, given, strict=True)):
            _check(name, i, len(rollout), score)
    return Batch(rollouts, scores, reference, rewards, advantages, weights, gold, outcome, pruned)


def _check(name: str, i: int, length: int, score: Scores) -> None:
    for field in ("sampled", "support", "log_z", "entropy", "topk_ids", "topk_logp"):
        values = getattr(score, field)
        if values is None:
            continue
        if len(values) != length:
            raise ValueError(
                f"{name}: {field} of rollout {i} has {len(values)} rows for {length} tokens"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: {field} of rollout {i} is not finite")


class _Flat:
    """Concatenate per-rollout arrays on a device: integers as int64, floats as they are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, arrays: Sequence[np.ndarray]) -> Tensor:
        flat = torch.from_numpy(np.concatenate(arrays))
        return (flat if flat.is_floating_point() else flat.long()).to(self.device)


def _column(put: _Flat, scores: Sequence[Scores] | None, field: str) -> Tensor | None:
    if scores is None:
        return None
    arrays = [getattr(s, field) for s in scores]
    return None if any(a is None for a in arrays) else put(arrays)


def _view(put: _Flat, at: Positions, scores: Sequence[Scores] | None, k: int) -> GivenView | None:
    """What a teacher said, as a view: log-probs where it gave normalisers, log-scores else."""
    if scores is None:
        return None
    known = []
    log_z = _column(put, scores, "log_z")
    support = _column(put, scores, "support")
    if support is not None:
        support = support[:, :k]
        known.append((at.student_topk, support if log_z is None else support - log_z[:, None]))
    topk_logp = _column(put, scores, "topk_logp")
    if topk_logp is not None and at.teacher_topk is not None:
        known.append((at.teacher_topk[:, :k], topk_logp[:, :k]))
    sampled = _column(put, scores, "sampled")
    if sampled is not None:
        known.append((at.targets[:, None], sampled[:, None]))
    normalised = support is None or log_z is not None
    return GivenView(known, at.weight.new_zeros(len(at.weight)) if normalised else None)


def _full(
    scores: Sequence[Scores] | None, lengths: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Flat indices of the diagnosed positions, and the teacher's hidden states there."""
    starts = np.cumsum([0, *lengths[:-1]])
    placed = [
        (start + s.positions, s.hidden)
        for start, s in zip(starts, scores or (), strict=False)
        if s.positions is not None
    ]
    if not placed:
        return torch.zeros(0, dtype=torch.int64, device=device), None
    index = torch.from_numpy(np.concatenate([i for i, _ in placed])).long().to(device)
    hidden = [h.to(device) for _, h in placed if h is not None]
    return index, torch.cat(hidden) if len(hidden) == len(placed) else None


def pad_rows(rows: Sequence[Sequence[int]]) -> Tensor:
    """Right-padded ids (B, L), int64; the pad is 0 and nobody reads it."""
    width = max(1, *(len(r) for r in rows)) if rows else 1
    out = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return out
