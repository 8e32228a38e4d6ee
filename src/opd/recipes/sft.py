"""Supervised training on given completions: the off-policy step.

The cold start (paper section 5.1) is this step on the teacher's rollouts. Which examples a step
trains on follows from (seed, step) alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch

from opd.config import Optim
from opd.core.batch import Batch
from opd.core.microbatches import Budget, pass_overhead
from opd.data.sft_examples import choose
from opd.models.lm import LM
from opd.rng import Stream
from opd.training.step import (
    Memory,
    Refused,
    completion_loss,
    make_optimizer,
    seed_dropout,
    within_memory,
)
from opd.types import Rollout

Schedule = Literal["constant", "cosine"]


def sft(
    student: LM,
    examples: Sequence[Rollout],
    *,
    steps: int,
    optim: Optim,
    batch: int = 32,
    schedule: Schedule = "constant",
    tokens_per_microbatch: int = 8192,
    seed: int = 0,
) -> Iterator[float]:
    """Train the student in place, one optimizer step an iteration, yielding each step's loss.

    A generator, so that the caller decides when enough is enough: `list(sft(...))` makes all
    `steps`; leaving the loop early keeps the weights of that step.

    The loss is cross-entropy in nats, averaged over all completion tokens of the step: prompts and
    padding have no part in it, and no split into micro-batches changes it. Each pass visits the
    examples in a permutation of its own; a step may span two passes.

    Args:
        student: trained in place; left in evaluation mode after each step.
        examples: completions to learn, such as a teacher's rollouts or `example`s.
        steps: optimizer steps.
        optim: AdamW, clipping, warm-up; `lr` is the peak.
        batch: examples a step.
        schedule: constant, or cosine from the end of warm-up to zero at `steps` (paper: cosine).
        tokens_per_microbatch: padded tokens per forward-backward; memory only.
        seed: draws the order of the examples.

    Raises:
        ValueError: no examples, or an empty completion.
        Refused: loss or gradient was not finite; the weights are those of the step before.
    """
    if not examples or not all(map(len, examples)):
        raise ValueError("sft needs examples, each with a non-empty completion")
    optimizer, memory = make_optimizer(student, optim), Memory()
    for step in range(steps):
        chosen = [examples[i] for i in choose(len(examples), batch, step, seed)]
        made = sft_step(
            student,
            optimizer,
            chosen,
            lr=optim.lr * rate(step, steps, optim.warmup, schedule),
            grad_clip=optim.grad_clip,
            tokens_per_microbatch=tokens_per_microbatch,
            key=(seed, step),
            memory=memory,
        )
        yield made.loss


class Imitated(NamedTuple):
    """One supervised step: mean loss a token in nats, gradient norm, completion tokens."""

    loss: float
    grad_norm: float
    tokens: int


def sft_step(
    student: LM,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Rollout],
    *,
    lr: float,
    grad_clip: float,
    tokens_per_microbatch: int,
    key: tuple[int, int],
    memory: Memory | None = None,
) -> Imitated:
    """One optimizer step on all of `examples`; each completion token weighs the same.

    Micro-batches are buckets of similar length, so little of them is padding; every part is divided
    by the tokens of the whole step. Examples are not packed into one row: without a kernel for
    ragged attention a block-diagonal mask pays for the square of the whole row (docs/recipes.md).

    Args:
        student: trained in place; left in evaluation mode.
        optimizer: over its parameters; the caller keeps it from step to step.
        examples: at least one, none of them empty.
        lr: rate of this step.
        grad_clip: largest gradient norm.
        tokens_per_microbatch: padded tokens per forward-backward; memory only.
        key: (seed, step), what dropout depends on.
        memory: how often micro-batches were cut in two so far; they are if memory runs out.

    Raises:
        UserError: not even single examples fit into memory.
        Refused: loss or gradient was not finite; the weights are those of the step before.
    """
    chosen, memory = Batch(examples), memory or Memory()
    budget = Budget(tokens_per_microbatch, pass_overhead(student.device))
    groups = chosen.plan(budget, share_prompts=False)

    def attempt() -> float:
        student.model.train()
        seed_dropout(key[0], Stream.SFT_DROPOUT, key[1])
        loss = 0.0
        for indices in [part for group in memory.cut(groups) for part in group.microbatches]:
            micro = chosen.microbatch(indices, student.device, k=1)
            part = completion_loss(student, micro) / chosen.num_tokens
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        return loss

    loss = within_memory(
        student,
        optimizer,
        memory,
        attempt,
        lambda: groups,
        name=f"supervised step {key[1] + 1}",
        budget=tokens_per_microbatch,
    )
    norm = torch.nn.utils.clip_grad_norm_(student.parameters().values(), grad_clip).item()
    if not math.isfinite(loss + norm):
        optimizer.zero_grad(set_to_none=True)
        raise Refused(f"sft step {key[1]}: loss {loss}, gradient norm {norm}")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Imitated(loss, norm, chosen.num_tokens)


def rate(step: int, steps: int, warmup: int, schedule: Schedule) -> float:
    """Learning rate of a step as a share of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
