"""Counts the bytes of all tensors that are alive, operation by operation."""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside this context every new storage counts, until it is freed.

    It sees what operations return, in forward, backward and recomputation; not the temporary
    storage inside a kernel.

    Attributes:
        now: bytes alive.
        peak: most bytes alive at a time.
    """

    def __init__(self, known=()):
        """Start at zero.

        Args:
            known: tensors whose storage does not count, such as weights.
        """
        super().__init__()
        self.now = self.peak = 0
        self._bytes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                for part in (value._indices(), value._values()) if value.is_sparse else (value,):
                    self._add(part)
        return result

    def _add(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._bytes:
            return
        self._bytes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key):
        self.now -= self._bytes.pop(key)
