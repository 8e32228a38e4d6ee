"""Weights of a frozen model that are on its device only while they are used.

Between uses they are in host memory, or nowhere and read again. The head stays: the loss and the
diagnostics apply it while the student is trained.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from opd.models.quantised import unpacked_count


class AwayWeights:
    """All weights of a model but its head, there or away.

    A forward brings them back by itself; `release` sends them away.
    """

    def __init__(self, model: Any, read: Callable[[], nn.Module] | None) -> None:
        """Watch over a model whose weights are there.

        Args:
            model: of transformers, frozen.
            read: the same model once more, from disk; None: keep the weights in host memory.
        """
        heads = list(model.get_output_embeddings().parameters())
        if read is not None:
            for weight in heads:  # what stays would keep the whole file in memory
                weight.data = weight.data.clone()
        head = {id(p) for p in heads}
        self.weights = {n: p for n, p in model.named_parameters() if id(p) not in head}
        self.device: torch.device = next(iter(self.weights.values())).device
        self.read, self.there = read, True
        self.count: int = unpacked_count(model) + sum(w.numel() for w in self.weights.values())
        self._host: dict[str, Tensor] = {}
        model.base_model.register_forward_pre_hook(lambda *_: self.bring())

    def bring(self) -> None:
        """Put the weights on their device; nothing to do if they are there."""
        if self.there:
            return
        give_back()  # gradients of the step before, which the heap would keep beside the weights
        if self.read is None:
            for name, weight in self.weights.items():
                weight.data = self._host[name].to(self.device, non_blocking=True)
        else:
            fresh = dict(self.read().named_parameters())
            for name, weight in self.weights.items():
                weight.data = fresh.pop(name).detach().to(self.device)
        self.there = True

    def release(self) -> None:
        """Give back the memory that the weights take on their device."""
        if not self.there:
            return
        if self.read is None and not self._host:
            self._host = {name: _on_host(weight) for name, weight in self.weights.items()}
        for weight in self.weights.values():
            weight.data = torch.empty(0, dtype=weight.dtype, device=self.device)
        self.there = False
        give_back()


def _on_host(weight: Tensor) -> Tensor:
    copy = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=weight.is_cuda)
    return copy.copy_(weight.detach())


def leave_file(model: nn.Module) -> None:
    """Copy the weights that are left of a file, which stays in memory as long as one is used."""
    for weight in model.parameters():
        weight.data = weight.data.clone()
    give_back()


def give_back() -> None:
    """Return freed memory to the device, or to the system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)
