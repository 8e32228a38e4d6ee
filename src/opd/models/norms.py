"""RMS norms by torch's own kernel on a GPU: one launch where transformers' code makes eight.

A decoder has two to four norms per layer, so that they are more than half of all kernels of a
decoding step, whose time on a GPU is the number of its kernels. Forward and backward also keep one
copy of the input less in float32.
"""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

_TOLERANCE = 4  # roundings of the result: transformers rounds once more in bf16


def use_fused_norms(model: nn.Module) -> int:
    """Replace the code of RMS norms that compute what torch's `rms_norm` does.

    Each norm is compared with torch's on a few rows first; one that differs (an offset on its
    weight, a gate) keeps its own code.

    Args:
        model: on its device; parameters and their names stay as they are.

    Returns:
        Number of norms replaced.
    """
    norms = [m for m in model.modules() if _may_be_rms_norm(m) and _agrees(m)]
    for norm in norms:
        norm.forward = types.MethodType(_forward, norm)
    return len(norms)


def _forward(norm: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, norm.weight.shape, norm.weight, _eps(norm))


def _may_be_rms_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return (
        "RMSNorm" in type(module).__name__
        and isinstance(weight, Tensor)
        and weight.dim() == 1
        and not weight.is_meta
        and isinstance(_eps(module), float)
        and len(inspect.signature(module.forward).parameters) == 1
    )


def _eps(norm: Any) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


@torch.no_grad()
def _agrees(norm: Any) -> bool:
    weight = norm.weight
    numbers = torch.arange(4 * len(weight), dtype=torch.float64).reshape(4, -1)
    hidden = (3 * torch.sin(numbers)).to(weight)
    own, fused = norm(hidden), _forward(norm, hidden)
    if own.dtype != fused.dtype:
        return False
    precision = torch.finfo(own.dtype if own.dtype != torch.float64 else torch.float32).eps
    difference = (own.double() - fused.double()).abs()
    return bool((difference <= _TOLERANCE * precision * own.double().abs() + 1e-12).all())
