"""The planned memory of a run: bytes by phase and device, and whether the devices have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from opd.setup.memory_models import DeviceMemory

Phase = Literal["load", "rollout", "score", "update", "save"]
Parts = Mapping[str, int]
# Of a device's free memory that may be used. The rest is for fragments that torch's allocator
# cannot give, workspaces of kernels, and what a plan does not see.
USABLE = 0.94


@dataclass(frozen=True)
class PhaseMemory:
    """What one phase needs of one device, in bytes by part."""

    phase: Phase
    device: str
    parts: Parts

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """Memory by phase and device.

    With several processes: of each on its accelerator, of all those of the host in host memory.

    Attributes:
        phases: every phase on every device.
        devices: accelerators first, host memory last.
        memory: of the devices.
        precision: student.precision, never auto.
        tokens_per_microbatch: never auto.
        rows: completions sampled together in this process; 0: a server or a replay gives them.
        length: tokens of the longest prompt with its completion.
        processes: that train together.
    """

    phases: tuple[PhaseMemory, ...]
    devices: tuple[str, ...]
    memory: DeviceMemory
    precision: str
    tokens_per_microbatch: int
    rows: int
    length: int
    processes: int

    @property
    def free(self) -> Mapping[str, int]:
        """Bytes that each device can give now; devices that are not present are left out."""
        return self.memory.free

    def peak(self, device: str) -> PhaseMemory:
        """The phase that needs most of a device."""
        return max((p for p in self.phases if p.device == device), key=lambda p: p.total)

    def fits(self, device: str) -> bool | None:
        """Whether a device has enough; None where its memory is not known."""
        free = self.free.get(device)
        return None if free is None else self.peak(device).total <= USABLE * free

    @property
    def too_small(self) -> list[str]:
        """Devices that do not have enough."""
        return [device for device in self.devices if self.fits(device) is False]

    def record(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "devices": [self._device_record(device) for device in self.devices],
            "precision": self.precision,
            "tokens_per_microbatch": self.tokens_per_microbatch,
            "rows": self.rows,
            "length": self.length,
            "processes": self.processes,
        }

    def _device_record(self, device: str) -> dict[str, Any]:
        peak = self.peak(device)
        return {
            "device": device,
            "free": self.free.get(device),
            "needed": peak.total,
            "phase": peak.phase,
            "fits": self.fits(device),
            "phases": [
                {"phase": p.phase, "bytes": p.total, "parts": dict(p.parts)}
                for p in self.phases
                if p.device == device
            ],
        }
