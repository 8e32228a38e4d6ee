"""From a TRL script, the loss alone: opd's default loss in the place of GKD's.

    from trl.experimental.gkd import GKDTrainer
    from trl_loss import support_loss

    class Trainer(GKDTrainer):
        generalized_jsd_loss = staticmethod(support_loss)

The rest of the script stays as it is (trl 1.16); `lmbda=1.0` makes it on-policy. For opd's
diagnostics and report of a TRL run see examples/trl_callback.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opd import losses

K = 16  # tokens of the support


def support_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Reverse KL renormalised on the student's top k (paper, Eq. 5), per completion token.

    Takes the arguments of GKDTrainer.generalized_jsd_loss: logits (B, T, V) that are aligned with
    `labels` (B, T), -100 where there is no completion token. `beta` has no meaning here.
    """
    student, teacher = student_logits / temperature, teacher_logits / temperature
    support = student.detach().topk(min(K, student.size(-1)), dim=-1).indices
    p = losses.renormalise(student.gather(-1, support))
    q = losses.renormalise(teacher.detach().gather(-1, support))
    values = losses.reverse_kl(p, q)
    valid = torch.ones_like(values) if labels is None else (labels != -100).to(values.dtype)
    values = values * valid
    if num_items_in_batch is not None:  # tokens of all micro-batches of the update
        return values.sum() / num_items_in_batch
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.sum() / valid.sum().clamp(min=1)
