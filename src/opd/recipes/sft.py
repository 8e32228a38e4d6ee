"""Supervised training on given completions: the off-policy step.

The cold start (paper section 5.1) is this step on the teacher's rollouts. Which examples a step
trains on follows from (seed, step) alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch

from opd.config import Optim
from opd.core.align import align
from opd.data.gold import choose
from opd.models.lm import LM
from opd.types import Rollout
from opd.update import Refused, completion_loss, derive_dropout, make_optimizer

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
    optimizer = make_optimizer(student, optim)
    weights = list(student.parameters().values())
    for step in range(steps):
        chosen = align([examples[i] for i in choose(len(examples), batch, step, seed)], None)
        student.model.train()
        derive_dropout(seed, step)
        loss = 0.0
        for indices in chosen.split(tokens_per_microbatch):
            micro = chosen.micro(indices, student.device, k=1)
            part = completion_loss(student, micro) / chosen.num_tokens
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
        student.model.eval()
        norm = torch.nn.utils.clip_grad_norm_(weights, optim.grad_clip).item()
        if not math.isfinite(loss + norm):
            raise Refused(f"sft step {step}: loss {loss}, gradient norm {norm}")
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * rate(step, steps, optim.warmup, schedule)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss


def rate(step: int, steps: int, warmup: int, schedule: Schedule) -> float:
    """Learning rate of a step as a share of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
