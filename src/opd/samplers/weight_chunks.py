"""What a trainer hands over to a server: weights as chunks of bytes, in memory that it can open."""

from __future__ import annotations

import base64
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

CHUNK = 256 * 2**20  # bytes; a chunk is longer by its last tensor


class Chunk(NamedTuple):
    """Tensors that travel together.

    Attributes:
        names: of the tensors.
        tensors: N of them.
        dtypes: in which each is sent.
    """

    names: list[str]
    tensors: list[torch.Tensor]
    dtypes: list[torch.dtype]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each."""
        pairs = zip(self.tensors, self.dtypes, strict=True)
        return [tensor.numel() * dtype.itemsize for tensor, dtype in pairs]

    def describe(self) -> dict[str, Any]:
        """What the server is described of it."""
        return {
            "names": self.names,
            "dtype_names": [str(dtype).removeprefix("torch.") for dtype in self.dtypes],
            "shapes": [list(tensor.shape) for tensor in self.tensors],
        }

    def fill(self, memory: torch.Tensor) -> torch.Tensor:
        """Write the tensors behind each other into (B,) bytes; returns those that are used."""
        start = 0
        for tensor, dtype, size in zip(self.tensors, self.dtypes, self.sizes, strict=True):
            part = memory[start : start + size].view(dtype)
            part.copy_(tensor.detach().reshape(-1))
            start += size
        return memory[:start]


def split_chunks(
    weights: Mapping[str, torch.Tensor], dtype: torch.dtype | None, limit: int = CHUNK
) -> list[Chunk]:
    """Weights in order, a new chunk after each that exceeds `limit` bytes, as the server cuts them.

    Args:
        weights: by name.
        dtype: of those in floating point; None: their own.
        limit: bytes.
    """
    chunks, size = [Chunk([], [], [])], 0
    for name, tensor in weights.items():
        if size > limit:
            chunks.append(Chunk([], [], []))
            size = 0
        sent = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        chunks[-1].names.append(name)
        chunks[-1].tensors.append(tensor)
        chunks[-1].dtypes.append(sent)
        size += tensor.numel() * sent.itemsize
    return chunks


def weights_to_send(model: torch.nn.Module, *, untied: bool = False) -> dict[str, torch.Tensor]:
    """A model's weights by the names of its files.

    Args:
        model: of transformers.
        untied: whether a tied head is sent as weights of its own.
    """
    weights: dict[str, torch.Tensor] = {}
    seen = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape)
        if untied or place not in seen:
            weights[name] = tensor
        seen.add(place)
    return weights


class SharedBuffer:
    """Bytes that another process on the same device can open, inside a `with` block."""

    def __init__(self, device: torch.device, size: int) -> None:
        """Allocate them.

        Args:
            device: a GPU, or the CPU: then they are a file.
            size: bytes.
        """
        self.device, self._file = device, ""
        if device.type == "cuda":
            self.memory = torch.empty(size, dtype=torch.uint8, device=device)
            return
        handle, self._file = tempfile.mkstemp(prefix="opd-weights-")
        os.close(handle)
        self.memory = torch.from_file(self._file, shared=True, size=size, dtype=torch.uint8)

    def __enter__(self) -> SharedBuffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        del self.memory
        if self._file:
            Path(self._file).unlink(missing_ok=True)
        else:
            collect: Callable[[], None] = torch.cuda.ipc_collect
            collect()

    def handle(self) -> str:
        """What opens them, by the device's identity, as vLLM wants it over HTTP.

        vLLM reads it by `pickle` and only with VLLM_ALLOW_INSECURE_SERIALIZATION=1; nothing in opd
        reads it. It names classes of torch, and holds numbers and the driver's bytes.
        """
        if self._file:
            where: tuple[Any, ...] = (self._file, self.memory.numel())
        else:
            from torch.multiprocessing import reductions

            reduce: Callable[[torch.Tensor], Any] = reductions.reduce_tensor
            where = reduce(self.memory)[1]
            where = tuple(tuple(part) if isinstance(part, torch.Size) else part for part in where)
        return base64.b64encode(pickle.dumps({device_identity(self.device): where})).decode()


def device_identity(device: torch.device) -> str:
    """What two processes call the same device."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_properties(device).uuid)
    return device.type
