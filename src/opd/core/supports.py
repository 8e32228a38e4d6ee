"""Which candidate tokens a top-k loss compares at a position: ids and a validity mask.

Widths never depend on the data: a smaller support is a mask, so that no step has to wait for the
device to count. Shapes: N positions, k tokens of each model, W candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from opd.types import Support


class Candidates(NamedTuple):
    """Token ids (N, W) and which of them belong to the support, (N, W) bool."""

    ids: Tensor
    valid: Tensor


def contains(ids: Tensor, others: Tensor) -> Tensor:
    """For each of `ids` (N, A), whether it is in the same row of `others` (N, B): (N, A)."""
    return (ids[:, :, None] == others[:, None, :]).any(-1)


def candidates(
    support: Support, targets: Tensor, student_topk: Tensor, teacher_topk: Tensor | None
) -> Candidates:
    """The support's tokens; paper section 2.2, reference code's `top_k_strategy`.

    | support | ids | valid |
    |---|---|---|
    | sampled | the sampled token | all |
    | student_topk | student's k | all |
    | teacher_topk | teacher's k | all |
    | intersection | student's k | those the teacher also has |
    | union | student's k, teacher's k | the teacher's only if new |
    | symmetric_difference | student's k, teacher's k | those only one of them has |

    Args:
        support: a name of the table.
        targets: (N,) sampled tokens.
        student_topk: (N, k).
        teacher_topk: (N, k); may be None for sampled and student_topk.

    Returns:
        (N, 1), (N, k) or (N, 2k) candidates; a token is valid at most once per row.

    Raises:
        ValueError: for `full`, which has no candidates, or a missing teacher_topk.
    """
    if support == "sampled":
        return _all(targets[:, None])
    if support == "student_topk":
        return _all(student_topk)
    if support == "full":
        raise ValueError("support full compares whole rows and has no candidates")
    if teacher_topk is None:
        raise ValueError(f"support {support} needs the teacher's top-k ids")
    if support == "teacher_topk":
        return _all(teacher_topk)
    shared = contains(student_topk, teacher_topk)
    if support == "intersection":
        return Candidates(student_topk, shared)
    new = ~contains(teacher_topk, student_topk)
    ids = torch.cat([student_topk, teacher_topk], 1)
    of_student = torch.ones_like(shared) if support == "union" else ~shared
    return Candidates(ids, torch.cat([of_student, new], 1))


def _all(ids: Tensor) -> Candidates:
    return Candidates(ids, torch.ones_like(ids, dtype=torch.bool))
