"""Weights of a frozen model that are on its device only while they are used.

Between uses they are in host memory, or nowhere and read again. The head stays: the loss and the
diagnostics apply it while the student is trained.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from opd.models.quantised import unpacked_count

PIECE = 2**30  # bytes of pinned memory at a time: torch takes a power of two for each


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
        self._host: HostCopy | None = None
        model.base_model.register_forward_pre_hook(lambda *_: self.bring())

    def bring(self) -> None:
        """Put the weights on their device; nothing to do if they are there."""
        if self.there:
            return
        give_back()  # gradients of the step before, which the heap would keep beside the weights
        if self.read is None:
            assert self._host is not None
            for name, weight in self.weights.items():
                weight.data = self._host.on(self.device, name)
        else:
            fresh = dict(self.read().named_parameters())
            for name, weight in self.weights.items():
                weight.data = fresh.pop(name).detach().to(self.device)
        self.there = True

    def release(self) -> None:
        """Give back the memory that the weights take on their device."""
        if not self.there:
            return
        if self.read is None and self._host is None:
            self._host = HostCopy(self.weights)
        for weight in self.weights.values():
            weight.data = torch.empty(0, dtype=weight.dtype, device=self.device)
        self.there = False
        give_back()


class HostCopy:
    """Tensors in host memory, behind each other in pinned pieces.

    Pinned one by one they would take a third more: torch rounds each up to a power of two.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors."""
        self._like = {
            name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors.items()
        }
        total, pinned = sum(t.nbytes for t in tensors.values()), False
        self._starts: dict[str, int] = {}
        start = 0
        for name, tensor in tensors.items():
            self._starts[name], start = start, start + tensor.nbytes
            pinned = pinned or tensor.is_cuda
        self.pieces = [
            torch.empty(min(PIECE, total - at), dtype=torch.uint8, device="cpu", pin_memory=pinned)
            for at in range(0, total, PIECE)
        ]
        for name, tensor in tensors.items():
            for here, part in self._parts(name):
                here.copy_(_bytes_of(tensor.detach().contiguous())[part])

    def on(self, device: torch.device, name: str) -> Tensor:
        """One of the tensors, on a device; kernels there wait for its bytes, the host does not."""
        tensor = torch.empty_like(self._like[name], device=device)
        for here, part in self._parts(name):
            _bytes_of(tensor)[part].copy_(here, non_blocking=True)
        return tensor

    def _parts(self, name: str) -> Iterator[tuple[Tensor, slice]]:
        """Where bytes of a tensor are, and which of its bytes."""
        start, size = self._starts[name], self._like[name].nbytes
        for number in range(start // PIECE, -(-(start + size) // PIECE)):
            first = max(start, number * PIECE)
            end = min(start + size, (number + 1) * PIECE)
            piece = self.pieces[number][first - number * PIECE : end - number * PIECE]
            yield piece, slice(first - start, end - start)


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


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
