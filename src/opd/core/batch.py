"""Rollouts and scores to tensors: the only shift, the only mask.

The hidden state at sequence position p predicts token p + 1, so completion token t of a prompt of
P tokens is predicted at position P - 1 + t: `predicting_positions` is the one place that says so.
The tensors made here are flat: one row per completion token, no prompt, no padding.
Shapes: B sequences, L padded length, N completion tokens of a micro-batch, K support, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from opd.core.distributions import KnownScores
from opd.core.microbatches import Budget, MicroBatchGroup, plan_microbatches
from opd.core.objective import CompletionTokens
from opd.types import Rollout, Scores

Flatten = Callable[[Sequence[np.ndarray]], Tensor]


def predicting_positions(prompt_length: int, completion_length: int) -> slice:
    """Positions of a sequence whose hidden states predict its completion.

    Args:
        prompt_length: P >= 1, tokens of the sequence before the completion.
        completion_length: T.

    Returns:
        P - 1 to P + T - 2: the prompt's last token, and the completion without its last.
    """
    first = prompt_length - 1
    return slice(first, first + completion_length)


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """Some sequences of a step, padded for the backbone and flat for the loss."""

    input_ids: Tensor  # (B, L) right-padded; the last completion token is never an input
    prompt_index: Tensor | None  # (B,) shared prompt that a row continues; None: it has its own
    rows: Tensor  # (N,) sequence of each completion token
    cols: Tensor  # (N,) position of the hidden state that predicts it
    tokens: CompletionTokens
    length: Tensor  # (N,) completion length of the token's rollout
    teacher: KnownScores | None
    reference: KnownScores | None
    teacher_topk_logp: Tensor | None  # (N, K') beside tokens.teacher_topk
    diagnosed: Tensor  # (n,) which of the N tokens the diagnostics look at
    teacher_hidden: Tensor | None  # (n, H) of those, where the teacher gave hidden states
    teacher_name: str | None = None  # of several

    def __len__(self) -> int:
        return len(self.rows)

    def select(
        self, rows: slice
    ) -> tuple[CompletionTokens, KnownScores | None, KnownScores | None]:
        """Tokens, teacher scores and reference scores of some of the N completion tokens."""
        tokens = CompletionTokens._make(None if x is None else x[rows] for x in self.tokens)
        teacher = None if self.teacher is None else self.teacher.select(rows)
        return tokens, teacher, None if self.reference is None else self.reference.select(rows)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A whole optimizer step: rollouts, their scores, and what is known of each rollout.

    Raises:
        ValueError: at construction, for scores that do not fit (`check_scores`).
    """

    rollouts: Sequence[Rollout]
    scores: Sequence[Scores] | None = None
    reference: Sequence[Scores] | None = None
    rewards: np.ndarray | None = None  # (number of rollouts,) outcome
    advantages: np.ndarray | None = None  # (number of rollouts,) outcome relative to its group
    weights: Sequence[np.ndarray] | None = None  # (T,) per rollout; None is 1 everywhere
    sft_examples: Sequence[Rollout] = ()  # to imitate beside the distillation
    pruned: Sequence[np.ndarray] | None = None  # (T,) what the horizon left; part of `weights`
    teachers: Sequence[str] | None = None  # per rollout: who scored it; None for one teacher
    quoted: np.ndarray | None = None  # (number of rollouts,) whether it quotes the teacher's hint
    log_ratios: Sequence[np.ndarray] | None = (
        None  # (T,) per rollout of an earlier student; `core.importance`
    )

    def __post_init__(self) -> None:
        for name, scores in (("teacher", self.scores), ("reference", self.reference)):
            if scores is not None:
                check_scores(self.rollouts, scores, name=name)

    @property
    def num_tokens(self) -> int:
        """Completion tokens of the whole step: the denominator of the loss."""
        return sum(len(r) for r in self.rollouts)

    def split(self, max_tokens: int) -> list[list[int]]:
        """Rollout indices in micro-batches of at most `max_tokens` padded tokens.

        Empty rollouts are left out; rows of similar length are together (`buckets`), longest first.
        """
        groups = self.plan(Budget(max_tokens), share_prompts=False)
        return [rows for group in groups for rows in group.microbatches]

    def plan(
        self, budget: Budget, *, share_prompts: bool, processes: int = 1
    ) -> list[MicroBatchGroup]:
        """Indices of the rollouts that are not empty, in micro-batches; see `plan_microbatches`."""
        groups = []
        for kept in self._rows_by_teacher():
            groups += self._plan_rows(kept, budget, share_prompts, processes)
        return groups

    def _rows_by_teacher(self) -> list[list[int]]:
        """Rollouts that are not empty: a micro-batch holds those of one teacher."""
        rows: dict[str, list[int]] = {}
        for i, rollout in enumerate(self.rollouts):
            if len(rollout):
                rows.setdefault("" if self.teachers is None else self.teachers[i], []).append(i)
        return list(rows.values())

    def _plan_rows(
        self, kept: list[int], budget: Budget, share_prompts: bool, processes: int
    ) -> list[MicroBatchGroup]:
        rollouts = [self.rollouts[i] for i in kept]
        groups = plan_microbatches(
            [r.prompt.ids for r in rollouts],
            [len(r) - 1 for r in rollouts],
            budget,
            share_prompts=share_prompts,
            processes=processes,
        )

        def indices(lists: list[list[int]]) -> list[list[int]]:
            return [[kept[row] for row in rows] for rows in lists]

        return [MicroBatchGroup(indices(g.microbatches), indices(g.prompt_rows)) for g in groups]

    def microbatch(
        self,
        indices: Sequence[int],
        device: torch.device,
        *,
        k: int,
        prompt_index: Sequence[int] | None = None,
    ) -> MicroBatch:
        """The tensors of some rollouts.

        Args:
            indices: which rollouts.
            device: where the tensors go.
            k: columns of the recorded support to keep.
            prompt_index: for each of them, which of the prompts computed before it continues
                (`MicroBatchGroup`); None puts its own prompt into its row.
        """
        rollouts = [self.rollouts[i] for i in indices]
        flat = partial(_flatten, device=device)
        ids, spans = _inputs(rollouts, prompts_inside=prompt_index is None)
        lengths = [len(r) for r in rollouts]
        scores = None if self.scores is None else [self.scores[i] for i in indices]
        reference = None if self.reference is None else [self.reference[i] for i in indices]
        tokens = self._tokens(indices, flat, k, scores)
        diagnosed, teacher_hidden = _diagnosed(scores, lengths, device)
        return MicroBatch(
            input_ids=ids.to(device),
            prompt_index=None if prompt_index is None else flat([np.array(prompt_index)]),
            rows=flat([np.full(t, row) for row, t in enumerate(lengths)]),
            cols=flat([np.arange(span.start, span.stop) for span in spans]),
            tokens=tokens,
            length=flat([np.full(t, t) for t in lengths]),
            teacher=_known_scores(flat, tokens, scores, k),
            reference=_known_scores(flat, tokens, reference, k),
            teacher_topk_logp=_column(flat, scores, "topk_logp"),
            diagnosed=diagnosed,
            teacher_hidden=teacher_hidden,
            teacher_name=None if self.teachers is None else self.teachers[indices[0]],
        )

    def _tokens(
        self, indices: Sequence[int], flat: Flatten, k: int, scores: Sequence[Scores] | None
    ) -> CompletionTokens:
        rollouts = [self.rollouts[i] for i in indices]
        advantages, weights = self.advantages, self.weights
        return CompletionTokens(
            targets=flat([r.ids for r in rollouts]),
            student_topk=flat([r.topk_ids[:, :k] for r in rollouts]),
            teacher_topk=_column(flat, scores, "topk_ids"),
            sampler_logp=flat([r.logp for r in rollouts]),
            shared=_column(flat, scores, "shared", width=k),
            position=flat([np.arange(len(r)) for r in rollouts]),
            teacher_entropy=_column(flat, scores, "entropy"),
            advantage=None
            if advantages is None
            else flat([np.full(len(self.rollouts[i]), advantages[i]) for i in indices]),
            weight=flat([np.ones(len(r), dtype=np.float32) for r in rollouts])
            if weights is None
            else flat([weights[i] for i in indices]),
        )


def check_scores(
    rollouts: Sequence[Rollout], scores: Sequence[Scores], *, name: str = "teacher"
) -> None:
    """Check that scores belong to their rollouts and can be trained on.

    Args:
        rollouts: what was scored.
        scores: one per rollout.
        name: of the scoring model, for the error.

    Raises:
        ValueError: counts or lengths differ, or a score is not finite.
    """
    if len(scores) != len(rollouts):
        raise ValueError(f"{name} scored {len(scores)} rollouts of {len(rollouts)}")
    for i, (rollout, score) in enumerate(zip(rollouts, scores, strict=True)):
        for field, values in score.arrays().items():
            if len(values) != len(rollout):
                raise ValueError(
                    f"{name}: {field} of rollout {i} has {len(values)} rows for {len(rollout)} "
                    "tokens"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"{name}: {field} of rollout {i} is not finite")


def _inputs(rollouts: Sequence[Rollout], *, prompts_inside: bool) -> tuple[Tensor, list[slice]]:
    """Input ids (B, L) and the positions that predict each completion.

    A row that continues a shared prompt has one hidden state of it before its own: that of the
    prompt's last token (`opd.models.prefix_cache`).
    """
    prompts = [list(r.prompt.ids) if prompts_inside else [] for r in rollouts]
    ids = pad_rows([[*p, *r.ids[:-1].tolist()] for p, r in zip(prompts, rollouts, strict=True)])
    before = [len(p) if prompts_inside else 1 for p in prompts]
    return ids, [predicting_positions(n, len(r)) for n, r in zip(before, rollouts, strict=True)]


def _flatten(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Concatenated on a device: integers as int64, floats as they are."""
    flat = torch.from_numpy(np.concatenate(arrays))
    return (flat if flat.is_floating_point() else flat.long()).to(device)


def _column(
    flat: Flatten, scores: Sequence[Scores] | None, field: str, width: int | None = None
) -> Tensor | None:
    if scores is None:
        return None
    arrays = [getattr(s, field) for s in scores]
    if width is not None:
        arrays = [a if a is None else a[:, :width] for a in arrays]
    return None if any(a is None for a in arrays) else flat(arrays)


def _known_scores(
    flat: Flatten, tokens: CompletionTokens, scores: Sequence[Scores] | None, k: int
) -> KnownScores | None:
    """A teacher's scores: log-probs where it gave normalisers, else log-scores."""
    if scores is None:
        return None
    known = []
    log_z = _column(flat, scores, "log_z")
    support = _column(flat, scores, "support")
    if support is not None:
        support = support[:, :k]
        known.append((tokens.student_topk, support if log_z is None else support - log_z[:, None]))
    topk_logp = _column(flat, scores, "topk_logp")
    if topk_logp is not None and tokens.teacher_topk is not None:
        known.append((tokens.teacher_topk[:, :k], topk_logp[:, :k]))
    sampled = _column(flat, scores, "sampled")
    if sampled is not None:
        known.append((tokens.targets[:, None], sampled[:, None]))
    normalised = support is None or log_z is not None
    return KnownScores(known, tokens.weight.new_zeros(len(tokens.weight)) if normalised else None)


def _diagnosed(
    scores: Sequence[Scores] | None, lengths: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Flat indices of the diagnosed tokens, and the teacher's hidden states there."""
    starts = np.cumsum([0, *lengths[:-1]])
    chosen = [
        (start + s.positions, s.hidden)
        for start, s in zip(starts, scores or (), strict=False)
        if s.positions is not None
    ]
    if not chosen:
        return torch.zeros(0, dtype=torch.int64, device=device), None
    index = torch.from_numpy(np.concatenate([i for i, _ in chosen])).long().to(device)
    hidden = [h.to(device) for _, h in chosen if h is not None]
    return index, torch.cat(hidden) if len(hidden) == len(chosen) else None


def pad_rows(rows: Sequence[Sequence[int]]) -> Tensor:
    """Right-padded ids (B, L), int64, in host memory; the padding is 0 and never read."""
    width = max(1, *(len(r) for r in rows)) if rows else 1
    out = torch.zeros(len(rows), width, dtype=torch.int64, device="cpu")
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.int64, device="cpu")
    return out
