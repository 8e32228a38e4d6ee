"""Counts kernels, and what makes the host wait for the device, by the operations that do so."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result's value or shape the host needs.
WAITS = {
    "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "_unique2", "unique_dim",
    "unique_consecutive", "masked_select", "repeat_interleave.Tensor",
}  # fmt: skip
VIEWS = {
    "view", "_unsafe_view", "expand", "transpose", "t", "permute", "slice", "select", "unsqueeze",
    "squeeze", "alias", "detach", "split", "unbind", "as_strided", "lift_fresh", "_reshape_alias",
    "empty", "empty_like", "new_empty", "is_pinned",
}  # fmt: skip


class WatchedOperations(TorchDispatchMode):
    """A dispatch mode, and a function mode that is active as long."""

    def __init__(self, calls: TorchFunctionMode) -> None:
        super().__init__()
        self.calls = calls

    def __enter__(self):
        self.calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.calls.__exit__(*error)


class Counter(WatchedOperations):
    """Operations that launch kernels, and synchronisations, while it is active.

    The GPU is imagined: reading a tensor's value counts on a CPU too, and so does an index by a
    boolean tensor, whose size the host must know.
    """

    def __init__(self) -> None:
        self.kernels = 0
        self.waits: list[str] = []
        super().__init__(_Calls(self.waits))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.removesuffix(".default")
        base = name.split(".")[0]
        boolean = base in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)
            for x in tree_leaves(args[1])
        )
        if name in WAITS or base in WAITS or boolean:
            self.waits.append(name)
        self.kernels += base not in VIEWS
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Copies to the host, which are no operations where the tensor is there already."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        to_cpu = name == "to" and "cpu" in [x for x in args if isinstance(x, str)]
        if name in ("cpu", "tolist") or (to_cpu and not kwargs.get("non_blocking", False)):
            self.waits.append(name)
        return func(*args, **kwargs)
