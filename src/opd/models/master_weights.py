"""Mixed precision: bf16 working weights in the model, float32 master weights for the optimizer.

A step of AdamW changes a weight by about the learning rate. In bf16 a weight has 8 significant
bits, so a change below half of its last one (|w| / 512) is rounded away: at a rate of 1e-6 about
99 % of ordinary weights would never move. The optimizer therefore keeps float32 masters and copies
them into the model after each step. Gradients of working weights are summed in float32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from opd.models.lm import LM

LOW_PRECISION = (torch.bfloat16, torch.float16)
SAMPLED_WEIGHTS = 4096  # of each parameter, to estimate which of them can move


def add_master_weights(
    lm: LM, dtype: torch.dtype = torch.bfloat16, *, on_cpu: bool = False
) -> None:
    """Keep the trainable weights as float32 masters and cast the model's own to `dtype`, in place.

    The model's other parameters are cast too; its buffers (rotary frequencies) are not. Parameters
    are converted one after another, so at most one of them exists three times.

    Args:
        lm: loaded in float32 (or in what its checkpoint holds, for exact masters of those values).
        dtype: of the working weights.
        on_cpu: keep the masters in pinned host memory (optim.offload).
    """
    masters: dict[str, nn.Parameter] = {}
    for name, parameter in lm.model.named_parameters():  # a tied weight comes once
        if parameter.requires_grad:
            masters[name] = nn.Parameter(_master_of(parameter.detach(), on_cpu))
        if parameter.is_floating_point():  # else it is quantised
            parameter.data = parameter.detach().to(dtype)
        if parameter.requires_grad:
            parameter.grad_dtype = torch.float32
    lm.masters = masters


def _master_of(weight: Tensor, on_cpu: bool) -> Tensor:
    """A float32 copy, never the same storage as the working weight."""
    if not on_cpu:
        return weight.to(torch.float32, copy=True)
    pinned = torch.cuda.is_available() and weight.is_cuda
    master = torch.empty(weight.shape, dtype=torch.float32, pin_memory=pinned)
    return master.copy_(weight)


@torch.no_grad()
def copy_masters_to_model(lm: LM) -> None:
    """Give the working weights the masters' values; nothing to do without masters."""
    if not lm.masters:
        return
    working = lm.parameters()
    for name, master in lm.masters.items():
        working[name].copy_(master, non_blocking=True)


def fraction_that_cannot_move(weights: Iterable[Tensor], lr: float) -> float:
    """Estimated fraction of low-precision weights that an update of size `lr` leaves unchanged.

    An update is rounded away if it is smaller than half a unit in the last place of the weight.

    Args:
        weights: trainable parameters; those in float32 and float64 always move.
        lr: optim.lr, the size of an update of AdamW.
    """
    stuck = total = 0.0
    for weight in weights:
        if weight.dtype not in LOW_PRECISION:
            total += weight.numel()
            continue
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // SAMPLED_WEIGHTS)].float().abs()
        half_step = torch.exp2(sample.log2().floor()) * torch.finfo(weight.dtype).eps / 2
        stuck += weight.numel() * float((half_step > lr).float().mean())
        total += weight.numel()
    return stuck / total if total else 0.0
