"""The gradient of one step, accumulated over micro-batches.

Micro-batches are a matter of memory only: every sum is divided by the completion tokens of the
whole step. Shapes: N completion tokens of a micro-batch, H hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from opd.core import diagnostics
from opd.core.batch import Batch, MicroBatch
from opd.core.distributions import DenseDistribution, logp
from opd.core.losses import cross_entropy
from opd.core.microbatches import Budget, MicroBatchGroup, pass_overhead
from opd.models.fsdp import delay_reduction, dummy_step, reduce_gradients
from opd.models.head import Head, HeadDistribution
from opd.models.lm import LM, sparse_gradients
from opd.models.prefix_cache import PrefixCache, supports_prefix_cache
from opd.rng import Stream, torch_seed
from opd.training.diagnose import diagnose
from opd.training.learner import Learner
from opd.training.per_teacher import of_teacher
from opd.types import Mean, Metrics, add_means


def accumulate(learner: Learner, batch: Batch, step: int) -> tuple[Metrics, Tensor]:
    """Gradient of the whole step from zero: metrics so far, and this process's part of the loss."""
    student, denominator = learner.student, max(1, batch.num_tokens)
    learner.optimizer.zero_grad(set_to_none=True)
    groups = plan_microbatches(learner, batch)
    own_groups = learner.splits.apply([groups[i] for i in learner.ranks.shard(len(groups))])
    student.model.train()
    seed_dropout(learner.seed, Stream.DROPOUT, step)
    metrics: Metrics = {}
    loss = torch.zeros((), dtype=torch.float64)
    diagnosed = any(s.positions is not None and len(s.positions) for s in batch.scores or ())
    delay_reduction(student)
    with sparse_gradients(student) as head:
        for micro, hidden in forward(learner, batch, own_groups):
            total = microbatch_loss(learner, micro, hidden, head)
            if diagnosed:
                hidden.retain_grad()
            (total / denominator).backward()  # type: ignore[no-untyped-call]
            loss += total.detach().double().cpu() / denominator
            diagnosis = diagnose(learner, micro, hidden.detach())
            add_means(metrics, diagnosis)
            add_means(metrics, of_teacher(micro, total, diagnosis))
            if diagnosed:
                assert hidden.grad is not None
                norms, at = hidden.grad.norm(dim=-1), (micro.tokens.position, micro.length)
                by_position = diagnostics.gradient_metrics(norms, *at, edges=learner.position_edges)
                add_means(metrics, by_position)
        run_empty_microbatches(learner, len(groups))
        if batch.sft_examples:
            examples = Batch(batch.sft_examples)
            nats = accumulate_cross_entropy(learner, examples, learner.sft_weight)
            metrics["train/sft_loss"] = nats
            loss += learner.sft_weight * (nats.total / examples.num_tokens)
    reduce_gradients(student)
    return metrics, loss


def accumulate_cross_entropy(learner: Learner, examples: Batch, weight: float = 1.0) -> Mean:
    """Add the gradient of `weight` x cross-entropy on given completions, a mean over tokens.

    Returns:
        The unweighted loss of this process's micro-batches: nats and tokens.
    """
    nats = Mean(0.0, 0)
    groups = plan_microbatches(learner, examples, shared_prompts=False)
    own_groups = learner.splits.apply([groups[i] for i in learner.ranks.shard(len(groups))])
    for rows in [part for group in own_groups for part in group.microbatches]:
        micro = examples.microbatch(rows, learner.student.device, k=1)
        total = completion_loss(learner.student, micro)
        (weight * total / examples.num_tokens).backward()  # type: ignore[no-untyped-call]
        nats += Mean(total.item(), len(micro.rows))
    run_empty_microbatches(learner, len(groups))
    return nats


def plan_microbatches(
    learner: Learner, batch: Batch, *, shared_prompts: bool | None = None
) -> list[MicroBatchGroup]:
    """The rows of a step in micro-batches, the same at every process.

    Args:
        learner: decides budget, cost of a pass and number of processes.
        batch: the step.
        shared_prompts: whether a prompt may run once for its responses; None: if the model can.
    """
    student = learner.student
    if shared_prompts is None:
        shared_prompts = supports_prefix_cache(student)
    budget = Budget(learner.tokens_per_microbatch, pass_overhead(student.device))
    return batch.plan(budget, share_prompts=shared_prompts, processes=learner.ranks.size)


def forward(
    learner: Learner, batch: Batch, groups: Sequence[MicroBatchGroup]
) -> Iterator[tuple[MicroBatch, Tensor]]:
    """Micro-batches and the hidden states (N, H) that predict their tokens.

    The caller takes each one's gradient before the next; that of shared prompts follows their last.
    """
    student, k = learner.student, learner.objective.k
    for group in groups:
        if not group.prompt_rows:
            for rows in group.microbatches:
                micro = batch.microbatch(rows, student.device, k=k)
                yield micro, student.hidden(micro.input_ids)[micro.rows, micro.cols]
            continue
        prompts = PrefixCache(
            student, [batch.rollouts[rows[0]].prompt.ids for rows in group.prompt_rows]
        )
        for rows in group.microbatches:
            micro = batch.microbatch(
                rows, student.device, k=k, prompt_index=group.prompt_index(rows)
            )
            assert micro.prompt_index is not None
            states = prompts.hidden(micro.prompt_index, micro.input_ids)
            yield micro, states[micro.rows, micro.cols]
        prompts.backward()
        del prompts, states  # before the next group's are made


def microbatch_loss(
    learner: Learner, micro: MicroBatch, hidden: Tensor, head: Head | None = None
) -> Tensor:
    """Sum of the objective over the N positions of a micro-batch, from hidden states (N, H).

    A loss without normalisers touches K head rows per position; any other goes through the whole
    head in chunks that make their gradient at once.
    """
    objective, head = learner.objective, head or learner.student.head
    if not objective.needs_normaliser:
        view = HeadDistribution(head, hidden, objective.student_temperature)
        return objective.per_position(view, micro.teacher, micro.tokens, micro.reference).sum()

    def of_logits(logits: Tensor, part: slice, *teacher_logits: Tensor) -> Tensor:
        at, teacher, reference = micro.select(part)
        student = DenseDistribution(logits, objective.student_temperature)
        if teacher_logits:
            full = DenseDistribution(teacher_logits[0], learner.teacher_temperature)
            return objective.per_position(student, full, at, reference)
        return objective.per_position(student, teacher, at, reference)

    if not objective.needs_full_teacher:
        return head.chunked_sum(of_logits, hidden)
    logits_of, full_hidden = learner.logits_of(micro.teacher_name), micro.teacher_hidden
    assert logits_of is not None
    assert full_hidden is not None
    return head.chunked_sum(of_logits, hidden, lambda part: logits_of(full_hidden[part]))


def completion_loss(student: LM, micro: MicroBatch) -> Tensor:
    """Cross-entropy summed over the N completion tokens of a micro-batch: a scalar, in nats."""
    hidden = student.hidden(micro.input_ids)[micro.rows, micro.cols]
    targets = micro.tokens.targets[:, None]
    return student.head.chunked_sum(
        lambda logits, part: cross_entropy(logp(DenseDistribution(logits), targets[part])).squeeze(
            1
        ),
        hidden,
    )


def run_empty_microbatches(learner: Learner, count: int) -> None:
    """Join the collectives of micro-batches that other processes have more of, if sharded."""
    if learner.student.sharded is not None:
        for _ in range(learner.ranks.idle(count)):
            dummy_step(learner.student)


def seed_dropout(seed: int, stream: Stream, step: int) -> None:
    """Make torch's own random stream, which dropout reads, a function of (seed, stream, step)."""
    torch.manual_seed(torch_seed(seed, stream, step))
