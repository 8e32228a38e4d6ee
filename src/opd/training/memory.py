"""Out of memory in a step: its micro-batches are halved and the step begins again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from opd.core.microbatches import MicroBatchGroup
from opd.errors import UserError
from opd.models.lm import free_memory, is_out_of_memory
from opd.training.learner import Learner

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def retry_out_of_memory(
    learner: Learner,
    label: str,
    compute_gradient: Callable[[], Result],
    plan: Callable[[], Sequence[MicroBatchGroup]],
) -> Result:
    """Compute a step's gradient, beginning again with halved micro-batches when memory runs out.

    The gradient of a failed attempt is discarded whole, so the result is that of a smaller
    `train.tokens_per_microbatch`: the same up to rounding.

    Args:
        learner: its student is left in evaluation mode; its `splits` change, and
            `compute_gradient` reads them.
        label: of the step, for messages, such as "update 3".
        compute_gradient: from zero gradients.
        plan: the step's micro-batches before any halving; called only if memory runs out.

    Raises:
        UserError: single rows do not fit, or weights are sharded and the other processes, in
            the middle of their own micro-batches, cannot begin again.
    """
    student, splits = learner.student, learner.splits
    while True:
        try:
            return compute_gradient()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error) or "out of memory").splitlines()[0]
        finally:
            student.model.eval()
        learner.optimizer.zero_grad(set_to_none=True)
        free_memory()  # the failed graph hangs on the exception's frames
        parts = splits.apply(plan())
        rows = max((len(part) for group in parts for part in group.microbatches), default=0)
        indivisible = parts == [half for group in parts for half in group.split()]
        if indivisible or student.sharded is not None:
            raise UserError(
                f"Out of memory in {label}, at {rows} rows per micro-batch ({reason}). Set "
                "train.tokens_per_microbatch lower, student.gradient_checkpointing=true, or "
                "completions shorter (rollout.max_new_tokens)."
            )
        splits.halvings += 1
        logger.warning(
            "Out of memory in %s (%s): its micro-batches are halved, at most %d rows each, and so "
            "are later ones. A train.tokens_per_microbatch below %d avoids the retry.",
            label,
            reason,
            (rows + 1) // 2,
            learner.tokens_per_microbatch,
        )
