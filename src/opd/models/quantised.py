"""Frozen linear layers in 8 or 4 bits, on any device: weights alone, products in the input's dtype.

int8: levels -127 to 127 of a scale per output row. nf4: the 16 levels of NormalFloat, of a scale
per block of 64 weights (Dettmers et al., QLoRA, arXiv 2305.14314, without quantising the scales).
A layer's weights exist in full only while it is applied, in the backward pass too.
Shapes: O outputs, I inputs, B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opd.types import Scheme

BLOCK = 64  # weights that share a scale in nf4
ROWS = 32  # positions at which the change is measured at a time
SCALE_BYTES = {"int8": 4, "nf4": 2}  # float32; bfloat16
# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero: QLoRA, appendix E.
# fmt: off
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)
# fmt: on


@dataclass(frozen=True)
class QuantisationNoise:
    """What quantising has changed, on some text.

    Attributes:
        scheme: int8 or nf4.
        kl: mean KL(q before || q after) per token, nats.
        difference: mean |log q before - log q after| of the text's own tokens, nats.
        tokens: of the text.
    """

    scheme: Scheme
    kl: float
    difference: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"{self.scheme} changes log-probs by {self.difference:.2g} nats per token on average "
            f"(KL {self.kl:.2g}, {self.tokens} tokens of text)"
        )


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is stored in few bits."""

    def __init__(self, linear: nn.Linear, scheme: Scheme) -> None:
        """Quantise a layer; its bias is kept."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scheme = scheme
        stored, scale = (_to_int8 if scheme == "int8" else _to_nf4)(linear.weight.detach())
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """See `nn.Linear`."""
        product: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias

    def full_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I) that the stored levels stand for."""
        if self.scheme == "int8":
            return self.weight.to(dtype) * self.scale[:, None].to(dtype)
        pairs = _pairs(dtype, self.weight.device)
        blocks = F.embedding(self.weight.view(-1).int(), pairs).view(-1, BLOCK)
        full = blocks * self.scale[:, None].to(dtype)
        return full.view(self.out_features, self.in_features)


@lru_cache(maxsize=16)
def _pairs(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The two levels (256, 2) of each byte; made once: a copy from the host waits for a GPU."""
    table = torch.tensor(NF4, dtype=dtype, device=device)
    return torch.stack([table.repeat_interleave(16), table.repeat(16)], dim=1)


class _Product(torch.autograd.Function):
    """x W^T; autograd keeps neither, since W is frozen and made again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.full_weight(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.full_weight(gradient.dtype), None


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (O, I) int8 and scales (O,)."""
    scale = weight.float().abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def _to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Two levels in each of (O, I / 2) bytes, and scales (B,) bfloat16."""
    blocks = weight.float().view(-1, BLOCK)
    scale = blocks.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny).bfloat16()
    levels = torch.tensor(NF4, device=weight.device)
    between = (levels[1:] + levels[:-1]) / 2
    index = torch.bucketize(blocks / scale.float()[:, None], between).to(torch.uint8).view(-1, 2)
    return (index[:, 0] * 16 + index[:, 1]).view(weight.shape[0], -1), scale


def unpacked_count(model: nn.Module) -> int:
    """Weights that share a byte with another one."""
    layers = (m for m in model.modules() if isinstance(m, QuantisedLinear))
    return sum(m.in_features * m.out_features - m.weight.numel() for m in layers)


def can_be_quantised(module: nn.Module) -> bool:
    """Whether a module is a plain linear layer whose rows divide into blocks."""
    return type(module) is nn.Linear and module.in_features % BLOCK == 0


def full_bytes(linear: nn.Linear, scheme: Scheme, itemsize: int) -> int:
    """Bytes that exist while a layer's weights are made from their levels."""
    copies = 2 if scheme == "int8" else 4  # with levels, and with indices and pairs of them
    return copies * itemsize * linear.in_features * linear.out_features


def stored_bytes(linear: nn.Linear, scheme: Scheme) -> int:
    """Bytes of a quantised layer's weight with its scales."""
    count = linear.in_features * linear.out_features
    if scheme == "int8":
        return count + SCALE_BYTES[scheme] * linear.out_features
    return count // 2 + SCALE_BYTES[scheme] * count // BLOCK


@torch.no_grad()
def quantise(model: Any, scheme: Scheme, probe: Tensor | None) -> QuantisationNoise | None:
    """Quantise the linear layers of a causal LM in place, all but its head.

    Args:
        model: of transformers.
        scheme: of the weights.
        probe: ids (1, L) of a text on which the change is measured; None: it is not.
    """
    before = None if probe is None else _logits(model, probe)
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is not head and can_be_quantised(child):
                setattr(parent, name, QuantisedLinear(child, scheme))
    if probe is None or before is None:
        return None
    after = _logits(model, probe)
    own = probe[0, 1:, None].to(before.device)
    kl = difference = 0.0
    for start in range(0, len(own), ROWS):  # the whole tables would be gigabytes
        rows = slice(start, start + ROWS)
        p, q = (logits[rows].float().log_softmax(-1) for logits in (before, after))
        kl += float((p.exp() * (p - q)).sum())
        difference += float((p - q).gather(1, own[rows]).abs().sum())
    return QuantisationNoise(scheme, kl / len(own), difference / len(own), len(own))


def _logits(model: Any, ids: Tensor) -> Tensor:
    """Logits (L - 1, V) of the tokens after the first."""
    logits: Tensor = model(input_ids=ids.to(model.device), use_cache=False).logits[0, :-1]
    return logits


def dequantise(model: nn.Module) -> None:
    """Put ordinary layers in the place of quantised ones, so that adapters can be merged."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuantisedLinear):
                dtype = child.bias.dtype if child.bias is not None else dtype_beside(model)
                full = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
                full.weight = nn.Parameter(child.full_weight(dtype), requires_grad=False)
                full.bias = child.bias
                setattr(parent, name, full)


def dtype_beside(model: nn.Module) -> torch.dtype:
    """The dtype of a model's frozen weights that are not quantised."""
    kept = (p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad)
    return next(kept, torch.float32)
