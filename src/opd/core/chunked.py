"""Losses over the whole vocabulary, computed a chunk of positions at a time.

The gradient is computed in the forward pass, chunk by chunk, while the chunk's logits exist: one
matmul forward and two backward, nothing of shape [N, V] kept.
Shapes: N positions, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opd.core.cpu_kernels import project
from opd.core.precision import accumulation_dtype

# One chunk of fp32 logits, whatever the vocabulary: 64 MB on a CPU, 512 MB on an accelerator, which
# would otherwise wait for kernels and add up the head's gradient more often.
CHUNK_ELEMENTS = 16 * 2**20
ACCELERATOR_CHUNK_ELEMENTS = 128 * 2**20
# On a CPU the loss's dozens of elementwise passes stay in cache (2 MB in fp32); on an accelerator
# smaller blocks would only mean more kernels.
CPU_BLOCK_ELEMENTS = 2**19

LossOfLogits = Callable[..., Tensor]
LogitsOf = Callable[[slice], Tensor]


def chunk_slices(positions: int, vocab: int, device: torch.device) -> list[slice]:
    """Slices of positions whose logits (n, vocab) stay within one chunk of the device."""
    elements = CHUNK_ELEMENTS if device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    step = max(1, min(positions, elements // vocab)) if positions else 1
    return [slice(i, min(i + step, positions)) for i in range(0, positions, step)]


def row_blocks(logits: Tensor) -> list[slice]:
    """Slices of a chunk's rows (n, V) for elementwise work."""
    rows, vocab = logits.shape
    step = max(1, CPU_BLOCK_ELEMENTS // vocab) if logits.device.type == "cpu" else max(1, rows)
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def chunked_sum(
    loss: LossOfLogits,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher: LogitsOf | None = None,
) -> Tensor:
    """Sum over positions of the loss, with gradient to hidden, weight and bias.

    Args:
        loss: (raw logits (n, V) of the positions in `part`, part) -> values (n,); with `teacher`,
            (raw logits, part, the teacher's logits (n, V)). Must treat positions independently; it
            is differentiated as soon as it is evaluated.
        hidden: (N, H).
        weight: (V, H).
        bias: (V,) or None.
        teacher: (part) -> logits (n, V), called once per chunk, without gradient.

    Returns:
        Scalar, at least fp32. Zero positions give 0 with a graph.
    """
    out: Tensor = _ChunkedSum.apply(hidden, weight, bias, loss, teacher)  # type: ignore[no-untyped-call]
    return out


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: LossOfLogits,
        teacher: LogitsOf | None,
    ) -> Tensor:
        dtype = accumulation_dtype(hidden.dtype)
        need_hidden, need_weight, need_bias, *_ = ctx.needs_input_grad
        needed = need_hidden or need_weight or need_bias
        grad_hidden = torch.zeros_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias, dtype=dtype) if need_bias and bias is not None else None
        total = hidden.new_zeros((), dtype=dtype)
        for part in chunk_slices(hidden.shape[0], weight.shape[0], hidden.device):
            chunk = hidden[part]
            logits = project(chunk, weight, bias).detach()
            teacher_logits = None if teacher is None else teacher(part)
            for rows in row_blocks(logits):
                total += _differentiate(loss, logits, teacher_logits, rows, part.start, needed)
            if grad_hidden is not None:
                grad_hidden[part] = logits @ weight
            if grad_weight is not None:
                _accumulate(grad_weight, logits, chunk)
            if grad_bias is not None:
                grad_bias += logits.sum(0, dtype=dtype)
        ctx.grads = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = upstream
        grads, ctx.grads = ctx.grads, None  # scaled in place, to save a copy of the head's
        return (*(None if g is None else g.mul_(scale.to(g.dtype)) for g in grads), None, None)


def _differentiate(
    loss: LossOfLogits,
    logits: Tensor,
    teacher_logits: Tensor | None,
    rows: slice,
    start: int,
    needed: bool,
) -> Tensor:
    """Sum of the loss over some rows of a chunk; their logits become its gradient in place."""
    part = slice(start + rows.start, start + rows.stop)
    given = () if teacher_logits is None else (teacher_logits[rows],)
    raw = logits[rows].detach().requires_grad_(needed)
    with torch.set_grad_enabled(needed):
        value = loss(raw, part, *given).sum()
    if value.requires_grad:
        logits[rows] = torch.autograd.grad(value, raw)[0]
    else:  # no gradient, such as a term that is masked everywhere
        logits[rows] = 0
    return value.detach()


def _accumulate(total: Tensor, grad: Tensor, chunk: Tensor) -> None:
    """Add grad^T chunk to total; the sum over chunks is in fp32 even for bf16 models."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.T, chunk)
    else:
        total += grad.T @ chunk
