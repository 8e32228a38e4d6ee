"""The output head: hidden states to logits, whole or only the rows somebody asks for.

A head is weight, bias, and what some families do after them (scaling, soft-capping). Rows beyond
the tokenizer (padded vocabularies) are cut off once, here, for everybody.
Shapes: N positions, H hidden width, K tokens asked for, V usable vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opd.core.chunked import LossOfLogits, chunked_sum
from opd.core.views import DenseView

# Rows gathered at a time are [chunk, K, H]; this many elements bound the buffer (128 MB in fp32).
_GATHER_ELEMENTS = 32 * 2**20


@dataclass(frozen=True, eq=False)
class Head:
    """Linear head with the family's own scaling, limited to the first `vocab` tokens."""

    weight: Tensor
    bias: Tensor | None
    vocab: int
    scale: float = 1.0
    softcap: float | None = None

    def shape(self, raw: Tensor) -> Tensor:
        """What the family does to the linear output: scaling and soft-capping, elementwise."""
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = self.softcap * torch.tanh(raw / self.softcap)
        return raw

    def linear(self, hidden: Tensor) -> Tensor:
        """Unshaped logits (N, V) of hidden states (N, H), in the head's dtype."""
        bias = None if self.bias is None else self.bias[: self.vocab]
        return torch.nn.functional.linear(hidden, self.weight[: self.vocab], bias)

    def full(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) of hidden states (N, H)."""
        return self.shape(self.linear(hidden))

    def chunked_sum(self, loss: LossOfLogits, hidden: Tensor) -> Tensor:
        """Sum over positions of `loss(logits, part)`; see `opd.core.chunked.chunked_sum`."""
        bias = None if self.bias is None else self.bias[: self.vocab]
        return chunked_sum(
            lambda raw, part: loss(self.shape(raw), part), hidden, self.weight[: self.vocab], bias
        )

    def rows(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Logits (N, K) of tokens `ids` (N, K) only: nothing of width V is built.

        Differentiable in hidden, weight and bias. Products accumulate in fp32 for bf16 models.
        """
        raw: Tensor = _RowDot.apply(hidden, self.weight, ids)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            raw = raw + self.bias[ids]
        return self.shape(raw)


class _RowDot(torch.autograd.Function):
    """out[n, k] = hidden[n] . weight[ids[n, k]], gathered in bounded chunks both ways."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, ids)
        out = hidden.new_empty(ids.shape, dtype=_wide(hidden))
        for part in _parts(ids, hidden.shape[1]):
            rows = weight[ids[part]].to(out.dtype)
            out[part] = torch.bmm(rows, hidden[part].to(out.dtype).unsqueeze(2)).squeeze(2)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        hidden, weight, ids = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros(weight.shape, dtype=grad.dtype, device=weight.device)
        for part in _parts(ids, hidden.shape[1]):
            if grad_hidden is not None:
                rows = weight[ids[part]].to(grad.dtype)
                grad_hidden[part] = (
                    torch.bmm(grad[part].unsqueeze(1), rows).squeeze(1).to(hidden.dtype)
                )
            if grad_weight is not None:
                outer = grad[part].unsqueeze(2) * hidden[part].to(grad.dtype).unsqueeze(1)
                grad_weight.index_add_(0, ids[part].reshape(-1), outer.flatten(0, 1))
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _parts(ids: Tensor, width: int) -> list[slice]:
    step = max(1, _GATHER_ELEMENTS // max(1, ids.shape[1] * width))
    return [slice(i, i + step) for i in range(0, ids.shape[0], step)]


@dataclass(eq=False)
class RowsView:
    """`opd.core.views.View` of hidden states through a head: scores cost K rows, not V."""

    head: Head
    hidden: Tensor
    temperature: float = 1.0

    def scores(self, ids: Tensor) -> Tensor:
        """See `View.scores`."""
        return self.head.rows(self.hidden, ids) / self.temperature

    def log_z(self) -> Tensor:
        """One whole head row a position; for small N only (losses go through core.chunked)."""
        return self._dense().log_z()

    def log_probs(self) -> Tensor:
        """One whole head row a position; for small N only (losses go through core.chunked)."""
        return self._dense().log_probs()

    def _dense(self) -> DenseView:
        return DenseView(self.head.full(self.hidden), self.temperature)
