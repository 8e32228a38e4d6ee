"""One optimizer step: accumulate the gradient, check it, clip it, update - or refuse to.

On-policy and supervised steps are the same but for their loss and their random stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from opd.core import diagnostics
from opd.core.batch import Batch
from opd.models.fsdp import reshard
from opd.rng import Stream
from opd.training.deterministic import run_deterministic
from opd.training.distributed import sum_over_ranks
from opd.training.gradient import (
    accumulate,
    accumulate_cross_entropy,
    plan_microbatches,
    seed_dropout,
)
from opd.training.learner import Learner
from opd.training.memory import retry_out_of_memory
from opd.training.optimizer import NonFiniteStep, finish_step, learning_rate
from opd.types import Mean, Metrics, Rollout


def update(learner: Learner, batch: Batch, step: int) -> Metrics:
    """Make one on-policy update.

    Args:
        learner: model, optimizer and objective.
        batch: the rollouts of the step with their scores.
        step: number of updates made so far; decides warm-up and dropout randomness.

    Returns:
        Metrics as exact means.

    Raises:
        NonFiniteStep: NaN or inf in loss or gradient norm; nothing was changed.
        UserError: not even single rollouts fit into memory.
    """
    metrics, loss = run_deterministic(
        learner.deterministic, lambda: accumulate_within_memory(learner, batch, step)
    )
    if learner.student.sharded is None:
        learner.ranks.sum_gradients(learner.student.parameters().values())
    else:
        reshard(learner.student)  # its gradients were summed on the way
    metrics = diagnostics.gradient_shares(learner.ranks.merge(metrics))
    total = sum_over_ranks(loss, learner.ranks)
    optim = learner.optim
    lr = learning_rate(optim.lr, step, optim.warmup)
    norm = finish_step(learner.student, learner.optimizer, total, lr=lr, grad_clip=optim.grad_clip)
    if learner.own_teacher is not None:
        learner.own_teacher.follow()
    if "drift/ratio" in metrics:
        if "diag/teacher_entropy" in metrics:
            metrics["diag/entropy_gap_mean"] = diagnostics.entropy_gap_mean(metrics)
        ratios = metrics["drift/ratio"], metrics["drift/ratio_squared"]
        metrics["drift/ess"] = diagnostics.drift_ess(*ratios)
    return metrics | {
        "train/loss": Mean(total, 1),
        "train/grad_norm": Mean(norm, 1),
        "train/lr": Mean(lr, 1),
        "train/tokens": Mean(batch.num_tokens, 1),
    }


def accumulate_within_memory(learner: Learner, batch: Batch, step: int) -> tuple[Metrics, Tensor]:
    """`accumulate`, beginning again with halved micro-batches when memory runs out."""
    return retry_out_of_memory(
        learner,
        f"update {step + 1}",
        lambda: accumulate(learner, batch, step),
        lambda: plan_microbatches(learner, batch),
    )


class SupervisedStep(NamedTuple):
    """One supervised step: mean loss per token in nats, gradient norm, completion tokens."""

    loss: float
    grad_norm: float
    tokens: int


def supervised_update(
    learner: Learner, examples: Sequence[Rollout], step: int, *, lr: float
) -> SupervisedStep:
    """Make one update on the cross-entropy of `examples`; each completion token weighs the same.

    Micro-batches are buckets of similar length, so little of them is padding; every part is divided
    by the tokens of the whole step. Examples are not packed into one row: without a kernel for
    ragged attention a block-diagonal mask pays for the square of the whole row (docs/recipes.md).

    Args:
        learner: its student is trained in place and left in evaluation mode; its objective and
            teacher are not used.
        examples: at least one, none of them empty.
        step: number of supervised updates made so far; decides dropout randomness.
        lr: rate of this step.

    Raises:
        UserError: not even single examples fit into memory.
        NonFiniteStep: loss or gradient was not finite; the weights are those of the step before.
    """
    batch = Batch(examples)

    def compute_gradient() -> Mean:
        learner.optimizer.zero_grad(set_to_none=True)
        learner.student.model.train()
        seed_dropout(learner.seed, Stream.SFT_DROPOUT, step)
        return accumulate_cross_entropy(learner, batch)

    nats = run_deterministic(
        learner.deterministic,
        lambda: retry_out_of_memory(
            learner,
            f"supervised step {step + 1}",
            compute_gradient,
            lambda: plan_microbatches(learner, batch, shared_prompts=False),
        ),
    )
    loss = nats.total / batch.num_tokens
    clip = learner.optim.grad_clip
    try:
        norm = finish_step(learner.student, learner.optimizer, loss, lr=lr, grad_clip=clip)
    except NonFiniteStep as reason:
        raise NonFiniteStep(f"supervised step {step + 1}: {reason}") from None
    return SupervisedStep(loss, norm, batch.num_tokens)
