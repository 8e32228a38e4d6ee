"""The precision of sums, log-softmax and divergences, whatever the model's own dtype is."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that values of `dtype` are summed in: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or as it is in float64: in bf16 even the sign of a small KL is wrong."""
    return x.to(accumulation_dtype(x.dtype))
