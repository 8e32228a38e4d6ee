"""Tensors that a test makes without naming a device, on another device than the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors


class DefaultDevice(TorchFunctionMode):
    """As `torch.set_default_device`, and random numbers of a CPU generator are drawn and moved.

    torch itself refuses these, although the numbers should not depend on the device.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs: dict[str, Any] = dict(kwargs or {})
        if func not in _device_constructors() or kwargs.get("device") is not None:
            return func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is None or generator.device.type != "cpu":
            return func(*args, **kwargs | {"device": self.device})
        made = func(*args, **kwargs | {"device": "cpu"})
        return made.detach().to(self.device).requires_grad_(made.requires_grad)
