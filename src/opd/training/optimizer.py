"""The optimizer and the end of every step: check, clip, schedule, update."""

from __future__ import annotations

import math
from typing import Literal

import torch

from opd.config import Optim
from opd.models.fsdp import full_tensor
from opd.models.lm import LM

Schedule = Literal["constant", "cosine"]


class NonFiniteStep(Exception):
    """The loss or the gradient norm is NaN or infinite; the optimizer has not moved."""


def make_optimizer(student: LM, optim: Optim) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; weight decay on matrices only.

    On a CPU in torch's fused form: the plain one holds two copies of its largest matrix while it
    steps, and elsewhere torch has its own choice.
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


def finish_step(
    student: LM, optimizer: torch.optim.Optimizer, loss: float, *, lr: float, grad_clip: float
) -> float:
    """Clip the accumulated gradient and step; leaves no gradient behind.

    Args:
        student: holds the gradient of the whole step.
        optimizer: over its trainable parameters.
        loss: of the whole step.
        lr: rate of this step.
        grad_clip: largest gradient norm.

    Returns:
        The gradient norm before clipping.

    Raises:
        NonFiniteStep: loss or norm is NaN or infinite; nothing was changed.
    """
    parameters = student.parameters().values()
    norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, grad_clip)).item()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteStep(f"loss {loss}, gradient norm {norm}")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def learning_rate(
    peak: float, step: int, warmup: int, schedule: Schedule = "constant", steps: int = 0
) -> float:
    """The rate of a step: linear warm-up, then constant or cosine to zero at `steps`.

    Args:
        peak: largest rate.
        step: number of updates made so far.
        warmup: steps until the peak.
        schedule: after the warm-up.
        steps: of the whole training; read by cosine alone.
    """
    if step < warmup:
        return peak * ((step + 1) / warmup)
    if schedule == "constant":
        return peak
    return peak * (0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))
