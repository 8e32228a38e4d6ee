"""An accelerator simulated on the CPU: what mixes devices fails, what waits is counted.

Its tensors hold numbers, unlike torch's meta tensors, whose device name they bear: code that gets
them takes its branches of "not a CPU", and computes what it computes on a CPU. Branches for `cuda`
alone (graphs, pinned memory, free memory) are not taken.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch.overrides import TorchFunctionMode

from opd.models.lm import LM
from support.syncs import WAITS, WatchedOperations

DEVICE = torch.device("meta")
COPIES = ("_to_copy", "copy_")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class OnDevice(torch.Tensor):
    """A tensor of the accelerator; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held):
        options = {"dtype": held.dtype, "device": DEVICE, "strides": held.stride()}
        options["storage_offset"] = held.storage_offset()
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), **options)
        made.held = held
        return made

    def __repr__(self, **kwargs):
        return f"OnDevice({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of the accelerator's tensors outside `Accelerator`")


class Accelerator(WatchedOperations):
    """While it is active tensors are made on, and moved to, `DEVICE`.

    Attributes:
        waits: operations of which the host needs the result, copies to it included, and where.
        uploads: copies from the host that are not asked for as non_blocking, which wait as well.
    """

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.uploads: list[str] = []
        super().__init__(_Calls(self.uploads))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.__name__.removesuffix(".default")
        there, here = _by_device((args, kwargs))
        indices = args[1] if name.split(".")[0] in INDEXING else ()
        of_others = {id(x) for x in here} - {id(x) for x in _tensors(indices)}
        # As on a GPU, a single number of the host's may take part, and an index, which is copied.
        if there and name not in COPIES and any(x.dim() for x in here if id(x) in of_others):
            shapes = [[tuple(x.shape) for x in part] for part in (there, here)]
            raise AssertionError(f"{name} of {shapes[0]} on the device and {shapes[1]} on the host")
        if any(x.device == DEVICE for x in here):
            raise AssertionError(f"{name} of a tensor whose numbers are lost: made outside")
        goes = self._goes(name, args, kwargs, bool(there))
        self._count(name, args, kwargs, indices, goes)
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        if name == "histc":  # of integers on a GPU alone
            args = (_held(args[0]).double(), *args[1:])
        out = func(*_map(_held, args), **_map(_held, kwargs))
        if not goes:
            return out
        given = {id(x.held): x for x in there}  # which in-place operations return
        return _map(lambda x: given[id(x)] if id(x) in given else _on_device(x), out)

    def _goes(self, name, args, kwargs, there: bool) -> bool:
        """Whether the result is on the device."""
        if name == "copy_":
            return isinstance(args[0], OnDevice)
        device = kwargs.get("device")
        return there if device is None else torch.device(device) == DEVICE

    def _count(self, name, args, kwargs, indices, goes: bool) -> None:
        there, here = _by_device((args, kwargs))
        if name in COPIES:
            blocking = not (kwargs.get("non_blocking", False) or (name == "copy_" and args[2:]))
            if blocking and there and not goes:
                self.waits.append(_where(name))
            if blocking and here and goes:
                self.uploads.append(_where(name))
        elif there:
            indices_there, indices_here = _by_device(indices)
            if indices_here:
                self.uploads.append(_where(name))
            boolean = any(x.dtype in (torch.bool, torch.uint8) for x in indices_there)
            if boolean or {name, name.split(".")[0]} & WAITS:
                self.waits.append(_where(name))


class _Calls(TorchFunctionMode):
    """What asks no operation of tensors of this device: lists, numbers of Python, `.data`."""

    def __init__(self, uploads: list[str]) -> None:
        super().__init__()
        self.uploads = uploads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return func(args[0], self._uploaded(args[0], args[1]), *args[2:])
        if func == torch.Tensor.data.__get__ and isinstance(args[0], OnDevice):
            return OnDevice(args[0].held)
        if func == torch.Tensor.data.__set__ and isinstance(args[0], OnDevice):
            args[0].held = args[1].held
        device = kwargs.get("device")
        if func not in (torch.tensor, torch.as_tensor) or device is None:
            return func(*args, **kwargs)
        if torch.device(device) != DEVICE:
            return func(*args, **kwargs)
        self.uploads.append(_where(func.__name__))
        return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE, non_blocking=True)

    def _uploaded(self, of, index):
        """An index with lists as tensors."""
        if isinstance(index, tuple):
            return tuple(self._uploaded(of, part) for part in index)
        if not isinstance(index, list) or not isinstance(of, OnDevice):
            return index
        self.uploads.append(_where("a list as an index"))
        return OnDevice(torch.tensor(index, device="cpu"))


def _by_device(values) -> tuple[list[OnDevice], list[torch.Tensor]]:
    """Tensors on the device, and those on the host."""
    there, here = [], []
    for x in _tensors(values):
        (there if isinstance(x, OnDevice) else here).append(x)
    return there, here


def _tensors(values) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple | dict):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _map(change, values):
    if isinstance(values, dict):
        return {name: _map(change, value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)([_map(change, value) for value in values])
    return change(values)


def _held(x):
    return x.held if isinstance(x, OnDevice) else x


def _on_device(x):
    return OnDevice(x) if isinstance(x, torch.Tensor) else x


def _where(name: str) -> str:
    """An operation and the line of opd that called for it."""
    frame = sys._getframe()
    while frame is not None and "/opd/" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return name
    return f"{name} at {frame.f_code.co_filename.rpartition('/opd/')[2]}:{frame.f_lineno}"


def on_accelerator(lm: LM) -> LM:
    """A copy of a model on the accelerator, which must be active; ties stay."""
    model = copy.deepcopy(lm.model)
    moved: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                held = torch.nn.Parameter(OnDevice(parameter.detach()), parameter.requires_grad)
                module._parameters[name] = moved.setdefault(id(parameter), held)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else OnDevice(buffer)
    return replace(lm, model=model)
