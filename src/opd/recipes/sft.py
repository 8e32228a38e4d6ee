"""Supervised training on given completions: the off-policy step.

The cold start (paper section 5.1) is this step on the teacher's rollouts. Which examples a step
trains on follows from (seed, step) alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from opd.config import Optim
from opd.core.align import MicroBatch, align
from opd.core.chunked import chunked_sum
from opd.core.losses import cross_entropy
from opd.core.views import DenseView, logp
from opd.models.lm import LM
from opd.types import Prompt, Rollout
from opd.update import Refused, make_optimizer

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
        chosen = align([examples[i] for i in batch_indices(len(examples), batch, step, seed)], None)
        student.model.train()
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


def example(index: int, prompt: Sequence[int], completion: Sequence[int]) -> Rollout:
    """A completion that nobody sampled, from token ids; the stop token belongs to it."""
    length = len(completion)
    return Rollout(
        prompt=Prompt(index, tuple(prompt), ""),
        sample=0,
        ids=np.asarray(completion, dtype=np.int32),
        logp=np.zeros(length, dtype=np.float32),
        entropy=np.zeros(length, dtype=np.float32),
        topk_ids=np.zeros((length, 0), dtype=np.int32),
        topk_logp=np.zeros((length, 0), dtype=np.float32),
        finish="stop",
    )


def completion_loss(student: LM, micro: MicroBatch) -> Tensor:
    """Cross-entropy summed over the N completion tokens of a micro-batch: a scalar, in nats."""
    hidden = student.hidden(micro.input_ids)[micro.rows, micro.cols]
    head, targets = student.head, micro.at.targets[:, None]

    def of_logits(raw: Tensor, part: slice) -> Tensor:
        return cross_entropy(logp(DenseView(head.shape(raw)), targets[part])).squeeze(1)

    bias = None if head.bias is None else head.bias[: head.vocab]
    return chunked_sum(of_logits, hidden, head.weight[: head.vocab], bias)


def batch_indices(count: int, batch: int, step: int, seed: int) -> list[int]:
    """Which examples a step trains on: consecutive places of an endless row of permutations."""
    places = range(step * batch, (step + 1) * batch)
    orders = {p: _order(count, p, seed) for p in {place // count for place in places}}
    return [int(orders[place // count][place % count]) for place in places]


def rate(step: int, steps: int, warmup: int, schedule: Schedule) -> float:
    """Learning rate of a step as a share of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _order(count: int, epoch: int, seed: int) -> np.ndarray:
    key = np.random.SeedSequence((seed, epoch))
    return np.random.Generator(np.random.Philox(key)).permutation(count)
