"""The weights of a teacher that is the student itself: frozen, of the moment, or averaged.

What can be shared with the student is: its base under switched-off adapters, its live weights, and
every weight that is not trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from opd.models.head import Head
from opd.models.lm import LM

WhichWeights = Literal["frozen", "live", "ema"]


@dataclass(eq=False)
class SelfWeights:
    """Weights that score what the student has sampled.

    Attributes:
        lm: the student; another copy of what it began with for `frozen` without adapters.
        kind: which weights of it.
        decay: of the average, per update.
        average: by parameter name, in the precision that the optimizer updates; `ema` only.
    """

    lm: LM
    kind: WhichWeights
    decay: float = 0.0
    average: dict[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def averaging(student: LM, decay: float) -> SelfWeights:
        """A moving average that begins at the student's weights of now."""
        start = {name: w.detach().clone() for name, w in student.weights().items()}
        return SelfWeights(student, "ema", decay, start)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While open, `lm` computes with these weights; nothing may be trained or kept meanwhile.

        Trained parameters exchange their storage, so that nothing of the student is copied.
        """
        if self.kind == "frozen" and self.lm.is_lora:
            base = self.lm.model.base_model
            base.disable_adapter_layers()  # type: ignore[operator, union-attr]
            try:
                yield
            finally:
                base.enable_adapter_layers()  # type: ignore[operator, union-attr]
            return
        if self.kind != "ema":
            yield
            return
        parameters = self.lm.parameters()
        own = {name: p.data for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                p.data = self.average[name].to(p.device, p.dtype)
            yield
        finally:
            for name, p in parameters.items():
                p.data = own[name]

    @property
    def head(self) -> Head:
        """The output head of these weights, without putting them in place."""
        head = self.lm.head
        if self.kind != "ema":
            return head  # adapters are never on the head
        averaged = {
            id(p): self.average[name].to(p.device, p.dtype)
            for name, p in self.lm.parameters().items()
            if p is head.weight or p is head.bias
        }
        bias = None if head.bias is None else averaged.get(id(head.bias), head.bias)
        return replace(head, weight=averaged.get(id(head.weight), head.weight), bias=bias)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average after an update of the student; nothing to do for other kinds."""
        if self.kind != "ema":
            return
        for name, weight in self.lm.weights().items():
            self.average[name].lerp_(weight.detach(), 1 - self.decay)

    @torch.no_grad()
    def restore(self, average: Mapping[str, Tensor]) -> None:
        """Be what a checkpoint held."""
        for name, tensor in self.average.items():
            tensor.copy_(average[name])
