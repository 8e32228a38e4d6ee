"""Supervised training on given completions: the off-policy step.

The cold start (paper section 5.1) is this step on the teacher's rollouts. The examples of a step
are a function of (seed, step) alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from opd.config import Optim
from opd.data.order import batch_indices
from opd.models.lm import LM
from opd.rng import Stream
from opd.training.learner import Learner
from opd.training.optimizer import Schedule, learning_rate, make_optimizer
from opd.training.step import supervised_update
from opd.types import Rollout


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
    """Train the student in place, one optimizer step per iteration, yielding each step's loss.

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
        batch: examples per step.
        schedule: constant, or cosine from the end of warm-up to zero at `steps` (paper: cosine).
        tokens_per_microbatch: padded tokens per forward-backward; memory only.
        seed: draws the order of the examples.

    Raises:
        ValueError: no examples, or an empty completion.
        NonFiniteStep: loss or gradient was not finite; the weights are those of the step before.
    """
    if not examples or not all(map(len, examples)):
        raise ValueError("sft needs examples, each with a non-empty completion")
    learner = Learner.supervised(
        student,
        make_optimizer(student, optim),
        optim,
        tokens_per_microbatch=tokens_per_microbatch,
        seed=seed,
    )
    for step in range(steps):
        indices = batch_indices(len(examples), batch, step, seed=seed, stream=Stream.SFT_ORDER)
        lr = learning_rate(optim.lr, step, optim.warmup, schedule, steps)
        yield supervised_update(learner, [examples[i] for i in indices], step, lr=lr).loss
