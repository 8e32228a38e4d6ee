"""The output head: hidden states to logits of the whole vocabulary, or of given tokens only.

A head is weight, bias, and what some families do after them (scaling, soft-capping). Rows beyond
the tokenizer (padded vocabularies) are cut off here, so that no caller sees them.
Shapes: N positions, H hidden size, K requested tokens, V usable vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from opd.core.chunked import LogitsOf, LossOfLogits, chunked_sum
from opd.core.cpu_kernels import project
from opd.core.distributions import DenseDistribution
from opd.core.precision import accumulation_dtype

# Head rows gathered at a time are [chunk, K, H]: at most this many elements (16 MB in fp32).
GATHER_ELEMENTS = 4 * 2**20
# For vocabularies of this size or larger, a gradient of few rows stays sparse until it is added to
# `.grad`.
SPARSE_VOCAB = 8192


@dataclass(frozen=True, eq=False)
class Head:
    """Linear head with the family's own scaling, limited to the first `vocab` tokens."""

    weight: Tensor
    bias: Tensor | None
    vocab: int
    scale: float = 1.0
    softcap: float | None = None
    sparse: bool = False  # whether `logits_of` may have a sparse gradient (`sparse_gradients`)

    def transform(self, raw: Tensor) -> Tensor:
        """Scaling and soft-capping of the linear output, elementwise."""
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            raw = self.softcap * torch.tanh(raw / self.softcap)
        return raw

    def raw_logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) before `transform`, of hidden states (N, H), in the head's dtype."""
        bias = None if self.bias is None else self.bias[: self.vocab]
        return project(hidden, self.weight[: self.vocab], bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) of hidden states (N, H)."""
        return self.transform(self.raw_logits(hidden))

    def chunked_sum(
        self, loss: LossOfLogits, hidden: Tensor, teacher: LogitsOf | None = None
    ) -> Tensor:
        """Sum over positions of the loss of logits; see `opd.core.chunked.chunked_sum`."""
        weight, bias = self.weight, self.bias
        if self.vocab < weight.shape[0]:  # the gradient of a slice is another dense (V, H)
            weight, bias = weight[: self.vocab], None if bias is None else bias[: self.vocab]

        def of_raw(raw: Tensor, *rest: Any) -> Tensor:
            return loss(self.transform(raw), *rest)

        return chunked_sum(of_raw, hidden, weight, bias, teacher)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Logits (N, K) of tokens `ids` (N, K) only: nothing of width V is built.

        Differentiable in hidden, weight and bias. Products accumulate in fp32 for bf16 models.
        """
        raw: Tensor = _RowDot.apply(hidden, self.weight, ids, self.sparse)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            raw = raw + self.bias[ids]
        return self.transform(raw)


class _RowDot(torch.autograd.Function):
    """out[n, k] = hidden[n] . weight[ids[n, k]], gathered in chunks of bounded size.

    Both gradients are weighted sums of rows, which `embedding_bag` computes without gathering them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, sparse: bool) -> Tensor:
        ctx.save_for_backward(hidden, weight, ids)
        ctx.sparse = sparse
        out = hidden.new_empty(ids.shape, dtype=accumulation_dtype(hidden.dtype))
        for part in _parts(ids, hidden.shape[1]):
            rows = weight[ids[part]].to(out.dtype)
            out[part] = torch.bmm(rows, hidden[part].to(out.dtype).unsqueeze(2)).squeeze(2)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        hidden, weight, ids = ctx.saved_tensors
        grad_hidden = _grad_hidden(grad, hidden, weight, ids) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = _grad_weight(grad, hidden, weight, ids, ctx.sparse)
        return grad_hidden, grad_weight, None, None


def _grad_hidden(grad: Tensor, hidden: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
    """Row n is the sum over k of grad[n, k] weight[ids[n, k]]: (N, H)."""
    if weight.dtype == grad.dtype and weight.is_contiguous():
        summed = embedding_bag(ids, weight, per_sample_weights=grad, mode="sum")
        return summed.to(hidden.dtype)
    out = torch.empty_like(hidden)
    for part in _parts(ids, hidden.shape[1]):  # bf16 weights: products in fp32, a chunk at a time
        rows = weight[ids[part]].to(grad.dtype)
        out[part] = torch.bmm(grad[part].unsqueeze(1), rows).squeeze(1).to(hidden.dtype)
    return out


def _grad_weight(grad: Tensor, hidden: Tensor, weight: Tensor, ids: Tensor, sparse: bool) -> Tensor:
    """Row v is the sum of grad[n, k] hidden[n] where ids[n, k] = v: (V, H), sparse if allowed."""
    if not ids.numel():
        return torch.zeros_like(weight)
    order = ids.flatten().argsort(stable=True)
    rows, counts = torch.unique_consecutive(ids.flatten()[order], return_counts=True)
    values = embedding_bag(
        order // max(1, ids.shape[1]),
        hidden.to(grad.dtype).contiguous(),
        offsets=counts.cumsum(0) - counts,
        per_sample_weights=grad.flatten()[order],
        mode="sum",
    ).to(weight.dtype)
    if sparse and weight.shape[0] >= SPARSE_VOCAB:
        return torch.sparse_coo_tensor(
            rows[None], values, weight.shape, is_coalesced=True, check_invariants=False
        )
    return weight.new_zeros(weight.shape).index_copy_(0, rows, values)


def _parts(ids: Tensor, width: int) -> list[slice]:
    step = max(1, GATHER_ELEMENTS // max(1, ids.shape[1] * width))
    return [slice(i, i + step) for i in range(0, ids.shape[0], step)]


@dataclass(eq=False)
class HeadDistribution:
    """The `Distribution` of hidden states through a head: scores cost K head rows, not V."""

    head: Head
    hidden: Tensor
    temperature: float = 1.0

    def scores(self, ids: Tensor) -> Tensor:
        """See `Distribution.scores`."""
        return self.head.logits_of(self.hidden, ids) / self.temperature

    def log_z(self) -> Tensor:
        """Logits of the whole vocabulary; for small N only (losses use `Head.chunked_sum`)."""
        return self._dense().log_z()

    def log_probs(self) -> Tensor:
        """Logits of the whole vocabulary; for small N only (losses use `Head.chunked_sum`)."""
        return self._dense().log_probs()

    def _dense(self) -> DenseDistribution:
        return DenseDistribution(self.head.logits(self.hidden), self.temperature)
