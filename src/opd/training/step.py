"""One optimizer step: micro-batches in, one update and its metrics out - or a refusal.

Micro-batches are a matter of memory only: every sum is divided by the completion tokens of the
whole step. Shapes: N completion tokens of a micro-batch, n of them diagnosed, H hidden width.
"""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from opd.config import Optim
from opd.core import diagnostics
from opd.core.batch import Batch, MicroBatch
from opd.core.chunked import chunk_slices, row_blocks
from opd.core.cpu_kernels import topk
from opd.core.diagnostics import Measure, TopK
from opd.core.distributions import DenseDistribution, logp
from opd.core.losses import cross_entropy
from opd.core.microbatches import Budget, MicroBatchGroup, pass_overhead
from opd.core.objective import Objective
from opd.errors import UserError
from opd.models.fsdp import dummy_step, full_tensor, reshard
from opd.models.head import Head, HeadDistribution
from opd.models.lm import LM, is_out_of_memory, sparse_gradients
from opd.models.prefix_cache import PrefixCache, supports_prefix_cache
from opd.rng import Stream, torch_seed
from opd.run.metric_names import POSITIONAL
from opd.training.distributed import ALONE, Ranks, total_of
from opd.types import Mean, Metrics

logger = logging.getLogger(__name__)

Found = TypeVar("Found")
LogitsOf = Callable[[Tensor], Tensor]  # teacher hidden states (n, H) to logits (n, V)


class Refused(Exception):
    """The loss or the gradient was not finite; the optimizer has not moved."""


@dataclass
class Memory:
    """How often micro-batches were cut in two because memory ran out."""

    halvings: int = 0

    def cut(self, groups: Sequence[MicroBatchGroup]) -> list[MicroBatchGroup]:
        """Groups of a step, each split `halvings` times, as far as they have rows."""
        result = list(groups)
        for _ in range(self.halvings):
            result = [half for group in result for half in group.split()]
        return result


@dataclass(frozen=True)
class Learner:
    """Everything an update needs and a step never changes."""

    student: LM
    optimizer: torch.optim.Optimizer
    objective: Objective
    optim: Optim
    tokens_per_microbatch: int
    teacher_logits: LogitsOf | None  # for full-vocabulary losses and diagnostics
    teacher_temperature: float
    diagnostics_k: int
    position_edges: Sequence[int]
    seed: int = 0
    sft_weight: float = 0.0
    ranks: Ranks = ALONE  # micro-batches are shared out among these processes
    memory: Memory = field(default_factory=Memory)


def update(learner: Learner, batch: Batch, step: int) -> Metrics:
    """Accumulate the gradient of the whole batch, check it, clip it, step.

    Args:
        learner: model, optimizer and objective.
        batch: the aligned rollouts of the step.
        step: number of updates made so far; decides warm-up and dropout randomness.

    Returns:
        Metrics as exact means.

    Raises:
        Refused: NaN or inf in loss or gradient norm; nothing was changed.
        UserError: not even single rollouts fit into memory.
    """
    student, optimizer = learner.student, learner.optimizer
    found, loss = accumulate_within_memory(learner, batch, step)
    if student.sharded is None:
        learner.ranks.sum_gradients(student.parameters().values())
    else:
        reshard(student)  # its gradients were summed on the way
    found = diagnostics.gradient_shares(learner.ranks.merge(found))
    value = total_of(loss, learner.ranks)
    parameters = student.parameters().values()
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, learner.optim.grad_clip))
    if not (math.isfinite(value) and math.isfinite(norm.item())):
        optimizer.zero_grad(set_to_none=True)
        raise Refused(f"loss {value}, gradient norm {norm.item()}")
    rate = learner.optim.lr * min(1.0, (step + 1) / max(1, learner.optim.warmup))
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if "drift/ratio" in found:
        if "diag/teacher_entropy" in found:
            found["diag/entropy_gap_mean"] = diagnostics.entropy_gap_mean(found)
        found["drift/ess"] = diagnostics.drift_ess(
            found["drift/ratio"], found["drift/ratio_squared"]
        )
    return found | {
        "train/loss": Mean(value, 1),
        "train/grad_norm": Mean(norm.item(), 1),
        "train/lr": Mean(rate, 1),
        "train/tokens": Mean(batch.num_tokens, 1),
    }


def accumulate_within_memory(learner: Learner, batch: Batch, step: int) -> tuple[Metrics, Tensor]:
    """`accumulate` by `within_memory`; the cut is kept for later steps."""
    return within_memory(
        learner.student,
        learner.optimizer,
        learner.memory,
        lambda: accumulate(learner, batch, step),
        lambda: plan(learner, batch),
        name=f"update {step + 1}",
        budget=learner.tokens_per_microbatch,
    )


def within_memory(
    student: LM,
    optimizer: torch.optim.Optimizer,
    memory: Memory,
    attempt: Callable[[], Found],
    groups: Callable[[], Sequence[MicroBatchGroup]],
    *,
    name: str,
    budget: int,
) -> Found:
    """A step's gradient, begun again with micro-batches cut in two whenever memory runs out.

    The gradient of an attempt that failed is thrown away whole, so the result is that of a smaller
    `train.tokens_per_microbatch`: the same up to rounding.

    Args:
        student: left in evaluation mode.
        optimizer: over its parameters.
        memory: how often micro-batches were cut so far; changed here, read by `attempt`.
        attempt: makes the gradient from nothing.
        groups: of the step, before any cut; asked for only if memory runs out.
        name: of the step, for people.
        budget: the `train.tokens_per_microbatch` they were planned with.

    Raises:
        UserError: single rows do not fit, or weights are sharded and the other processes, in
            the middle of their own micro-batches, cannot begin again.
    """
    while True:
        try:
            return attempt()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            why = (str(error) or "out of memory").splitlines()[0]
        finally:
            student.model.eval()
        optimizer.zero_grad(set_to_none=True)
        gc.collect()  # the failed graph hangs on the exception's frames
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        cut = memory.cut(groups())
        rows = max((len(part) for group in cut for part in group.microbatches), default=0)
        indivisible = cut == [half for group in cut for half in group.split()]
        if indivisible or student.sharded is not None:
            raise UserError(
                f"Out of memory in {name}, at {rows} rows a micro-batch ({why}). Set "
                "train.tokens_per_microbatch lower, student.gradient_checkpointing=true, or "
                "completions shorter (rollout.max_new_tokens)."
            )
        memory.halvings += 1
        logger.warning(
            "Out of memory in %s (%s): its micro-batches are cut in two, at most %d rows each, and "
            "so are later ones. A train.tokens_per_microbatch below %d avoids the repeat.",
            name,
            why,
            (rows + 1) // 2,
            budget,
        )


def accumulate(learner: Learner, batch: Batch, step: int) -> tuple[Metrics, Tensor]:
    """Gradient of the whole step from nothing: metrics so far, and this process's share of loss."""
    student, denominator = learner.student, max(1, batch.num_tokens)
    learner.optimizer.zero_grad(set_to_none=True)
    groups = plan(learner, batch)
    mine = learner.memory.cut([groups[i] for i in learner.ranks.share(len(groups))])
    student.model.train()
    seed_dropout(learner.seed, Stream.DROPOUT, step)
    found: Metrics = {}
    loss = torch.zeros((), dtype=torch.float64)
    located = any(s.positions is not None and len(s.positions) for s in batch.scores or ())
    with sparse_gradients(student) as head:
        for micro, hidden in fed(learner, batch, mine):
            total = micro_loss(learner, micro, hidden, head)
            if located:
                hidden.retain_grad()
            (total / denominator).backward()  # type: ignore[no-untyped-call]
            loss += total.detach().double().cpu() / denominator
            merge(found, diagnose(learner, micro, hidden.detach()))
            if located:
                assert hidden.grad is not None
                norms, where = hidden.grad.norm(dim=-1), (micro.tokens.position, micro.length)
                merge(
                    found, diagnostics.gradient_metrics(norms, *where, edges=learner.position_edges)
                )
        stay_in_step(learner, len(groups))
        if batch.gold:
            gold = Batch(batch.gold)
            told = found["train/sft_loss"] = imitate(learner, gold)
            loss += learner.sft_weight * (told.total / gold.num_tokens)
    return found, loss


def plan(learner: Learner, batch: Batch) -> list[MicroBatchGroup]:
    """The rows of a step in micro-batches, the same at every process."""
    share_prompts = supports_prefix_cache(learner.student)
    budget = Budget(learner.tokens_per_microbatch, pass_overhead(learner.student.device))
    return batch.plan(budget, share_prompts=share_prompts, processes=learner.ranks.size)


def fed(
    learner: Learner, batch: Batch, groups: Sequence[MicroBatchGroup]
) -> Iterator[tuple[MicroBatch, Tensor]]:
    """Micro-batches and the hidden states (N, H) that predict their tokens.

    The caller takes each one's gradient before the next; that of shared prompts follows their last.
    """
    student, k = learner.student, learner.objective.k
    for group in groups:
        if not group.prompt_rows:
            for part in group.microbatches:
                micro = batch.microbatch(part, student.device, k=k)
                yield micro, student.hidden(micro.input_ids)[micro.rows, micro.cols]
            continue
        prompts = PrefixCache(
            student, [batch.rollouts[rows[0]].prompt.ids for rows in group.prompt_rows]
        )
        for part in group.microbatches:
            prompt_index = group.prompt_index(part)
            micro = batch.microbatch(part, student.device, k=k, prompt_index=prompt_index)
            assert micro.prompt_index is not None
            states = prompts.hidden(micro.prompt_index, micro.input_ids)
            yield micro, states[micro.rows, micro.cols]
        prompts.backward()
        del prompts, states  # before those of the next group are made


def micro_loss(
    learner: Learner, micro: MicroBatch, hidden: Tensor, head: Head | None = None
) -> Tensor:
    """Sum of the objective over the N positions of a micro-batch, from hidden states (N, H).

    A loss without normalisers touches K head rows a position; any other goes through the whole head
    in chunks that make their gradient at once.
    """
    objective, head = learner.objective, head or learner.student.head
    if not objective.needs_normaliser:
        view = HeadDistribution(head, hidden, objective.student_temperature)
        return objective.per_position(view, micro.teacher, micro.tokens, micro.reference).sum()

    def of_logits(logits: Tensor, part: slice, *theirs: Tensor) -> Tensor:
        tokens, teacher, reference = micro.select(part)
        student = DenseDistribution(logits, objective.student_temperature)
        if theirs:
            full = DenseDistribution(theirs[0], learner.teacher_temperature)
            return objective.per_position(student, full, tokens, reference)
        return objective.per_position(student, teacher, tokens, reference)

    if not objective.needs_full_teacher:
        return head.chunked_sum(of_logits, hidden)
    teacher_logits, teacher_hidden = learner.teacher_logits, micro.teacher_hidden
    assert teacher_logits is not None
    assert teacher_hidden is not None
    return head.chunked_sum(of_logits, hidden, lambda part: teacher_logits(teacher_hidden[part]))


def stay_in_step(learner: Learner, count: int) -> None:
    """Make up for the micro-batches this process has fewer than others, if weights are sharded."""
    if learner.student.sharded is not None:
        for _ in range(learner.ranks.idle(count)):
            dummy_step(learner.student)


def imitate(learner: Learner, gold: Batch) -> Mean:
    """Add the gradient of `sft_weight` x cross-entropy on gold completions (Stable-OPD's mix).

    Returns:
        The unweighted loss of this process's share: nats and tokens.
    """
    student, found = learner.student, Mean(0.0, 0)
    budget = Budget(learner.tokens_per_microbatch, pass_overhead(student.device))
    groups = gold.plan(budget, share_prompts=False)
    mine = learner.memory.cut([groups[i] for i in learner.ranks.share(len(groups))])
    for chosen in [part for group in mine for part in group.microbatches]:
        micro = gold.microbatch(chosen, student.device, k=1)
        part = completion_loss(student, micro)
        (learner.sft_weight * part / gold.num_tokens).backward()  # type: ignore[no-untyped-call]
        found += Mean(part.item(), len(micro.rows))
    stay_in_step(learner, len(groups))
    return found


def completion_loss(student: LM, micro: MicroBatch) -> Tensor:
    """Cross-entropy summed over the N completion tokens of a micro-batch: a scalar, in nats."""
    hidden = student.hidden(micro.input_ids)[micro.rows, micro.cols]
    targets = micro.tokens.targets[:, None]

    def of_logits(logits: Tensor, part: slice) -> Tensor:
        return cross_entropy(logp(DenseDistribution(logits), targets[part])).squeeze(1)

    return student.head.chunked_sum(of_logits, hidden)


def seed_dropout(seed: int, stream: Stream, step: int) -> None:
    """Make torch's own random stream, which dropout reads, a function of (seed, stream, step)."""
    torch.manual_seed(torch_seed(seed, stream, step))


@torch.no_grad()
def diagnose(learner: Learner, micro: MicroBatch, hidden: Tensor) -> Metrics:
    """The paper's diagnostics on the chosen positions, as far as the teacher allows.

    A teacher in this process gives hidden states, hence everything; a server gives its own top k,
    hence exact overlaps, bounds for the rest, and no truncated quantity under a full one's name.

    Student hidden states (N, H) are those of the training forward, before the update: the student
    that is diagnosed is exactly the one whose gradient is taken.
    """
    found: Metrics = {}
    complete = micro.teacher_hidden is not None and learner.teacher_logits is not None
    if not complete and not _has_topk(learner, micro):
        return found
    head, temperature = learner.student.head, learner.objective.sampling_temperature
    # Twice the vocabulary: the logits of both models are there at once.
    for part in chunk_slices(len(micro.diagnosed), 2 * head.vocab):
        index = micro.diagnosed[part]
        logits, theirs = head.logits(hidden[index]), None
        if complete:
            assert learner.teacher_logits is not None
            assert micro.teacher_hidden is not None
            theirs = learner.teacher_logits(micro.teacher_hidden[part])
        measured = []
        for rows in row_blocks(logits):  # elementwise work in cache
            view, at = DenseDistribution(logits[rows]), index[rows]
            targets = micro.tokens.targets[at]
            if theirs is None:
                values = _truncated(learner, micro, view.log_probs(), at)
            else:
                teacher = DenseDistribution(theirs[rows]).log_probs()
                k = learner.diagnostics_k
                values = diagnostics.full_metrics(view.log_probs(), teacher, k=k, targets=targets)
            sampled = view if temperature == 1 else DenseDistribution(logits[rows], temperature)
            drawn = logp(sampled, targets[:, None]).squeeze(1)
            measured.append(
                values | diagnostics.drift_metrics(drawn, micro.tokens.sampler_logp[at])
            )
        values = diagnostics.concatenate(measured)
        merge(found, diagnostics.overall(values))
        place = (micro.tokens.position[index], micro.length[index])
        binned = {name: values[name] for name in POSITIONAL if name in values}
        merge(found, diagnostics.by_bin(binned, *place, edges=learner.position_edges))
    return found


def _has_topk(learner: Learner, micro: MicroBatch) -> bool:
    """Whether the teacher sent enough of its own top tokens, at the temperature diagnosed."""
    ids = micro.tokens.teacher_topk
    wide = ids is not None and ids.shape[1] >= learner.diagnostics_k
    return wide and learner.teacher_temperature == 1.0


def _truncated(
    learner: Learner, micro: MicroBatch, student: Tensor, index: Tensor
) -> dict[str, Measure]:
    """Measures from the teacher's top k, and from its exact entropies where it sent them."""
    assert micro.tokens.teacher_topk is not None
    assert micro.teacher_topk_logp is not None
    k = learner.diagnostics_k
    logp_best, ids_best = topk(student, k)
    teacher_ids = micro.tokens.teacher_topk[index, :k]
    teacher = TopK(teacher_ids, micro.teacher_topk_logp[index, :k])
    values = diagnostics.topk_metrics(TopK(ids_best, logp_best), teacher)
    entropy = diagnostics.entropy(student)
    values["diag/student_entropy"] = Measure.of(entropy)
    if micro.tokens.teacher_entropy is not None:
        theirs = micro.tokens.teacher_entropy[index]
        values["diag/teacher_entropy"] = Measure.of(theirs)
        values["diag/entropy_gap_abs"] = Measure.of((theirs - entropy).abs())
    return values


def merge(into: Metrics, more: Mapping[str, Mean]) -> None:
    """Add exact means, name by name."""
    for name, mean in more.items():
        into[name] = into[name] + mean if name in into else mean


def make_optimizer(student: LM, optim: Optim) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on matrices only.

    On a processor in torch's fused form: the plain one holds two copies of its largest matrix while
    it steps, and elsewhere torch has its own choice.
    """
    parameters = student.parameters().values()
    fused = student.sharded is None and all(p.device.type == "cpu" for p in parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=optim.lr, betas=optim.betas, fused=fused or None
    )
