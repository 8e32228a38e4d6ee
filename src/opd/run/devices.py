"""Accelerators that this process can see: what they are, what is free, how much a step used.

torch is never imported here. A process that has not imported it has no tensors on a device.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

DRIVER = Path("/proc/driver/nvidia/version")
OTHER_GPUS = (Path("/dev/kfd"), Path("/dev/dxg"))  # AMD; Windows' Linux
MIB = 2**20


def describe_devices() -> list[dict[str, Any]]:
    """Name, memory, compute capability, CUDA version and driver of every visible device."""
    torch = _torch_with_cuda()
    if torch is None:
        return []
    versions = {"cuda": torch.version.cuda, "driver": driver_version()}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "memory_mib": properties.total_memory // MIB,
                "compute_capability": f"{properties.major}.{properties.minor}",
                **versions,
            }
        )
    return devices


def may_have_gpu() -> bool:
    """Whether the machine shows signs of a GPU; torch is not asked."""
    return DRIVER.exists() or any(sign.exists() for sign in OTHER_GPUS)


def driver_version(path: Path = DRIVER) -> str | None:
    """Version of NVIDIA's kernel module; None where the system does not tell."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return None if match is None else match[1]


def peak_device_bytes() -> int | None:
    """Peak bytes of tensors since the last `reset_peak`, on the device with most of them.

    None while no device is in use.
    """
    torch = _torch_with_cuda()
    if torch is None or not torch.cuda.is_initialized():
        return None
    count = torch.cuda.device_count()
    return max(int(torch.cuda.max_memory_allocated(index)) for index in range(count))


def reset_peak() -> None:
    """Let `peak_device_bytes` begin anew on every device."""
    torch = _torch_with_cuda()
    if torch is None or not torch.cuda.is_initialized():
        return
    for index in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(index)


def _torch_with_cuda() -> Any:
    """The torch module if it is loaded and has a CUDA device, else None."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None


def _index_of(device: str) -> int | None:
    """Number of a CUDA device; None if it is another kind, or not here."""
    torch = _torch_with_cuda()
    if torch is None or not device.startswith("cuda"):
        return None
    index = int(device.partition(":")[2] or 0)
    return index if index < torch.cuda.device_count() else None


def free_device_bytes(device: str) -> int | None:
    """Bytes free on a CUDA device, with those that torch holds unused; None if it is not here."""
    index = _index_of(device)
    if index is None:
        return None
    torch = sys.modules["torch"]
    free, _ = torch.cuda.mem_get_info(index)
    held = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
    return int(free + held)


def total_device_bytes(device: str) -> int | None:
    """All bytes of a CUDA device; None if it is not here."""
    index = _index_of(device)
    if index is None:
        return None
    return int(sys.modules["torch"].cuda.get_device_properties(index).total_memory)
