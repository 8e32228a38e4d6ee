"""What is recorded of accelerators: from a stand-in for torch, since tests have none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from opd.run.clock import Clock
from opd.run.devices import (
    describe_devices,
    driver_version,
    peak_device_bytes,
    total_device_bytes,
)
from opd.run.env import environment

GIB = 2**30


class FakeCuda:
    """Two devices, of which the second holds more."""

    def __init__(self) -> None:
        self.peaks = [3 * GIB, 5 * GIB]

    def is_available(self) -> bool:
        return True

    is_initialized = is_available

    def device_count(self) -> int:
        return len(self.peaks)

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(name=f"GPU {index}", total_memory=80 * GIB, major=9, minor=0)

    def max_memory_allocated(self, index: int) -> int:
        return self.peaks[index]

    def reset_peak_memory_stats(self, index: int) -> None:
        self.peaks[index] = GIB


@pytest.fixture
def cuda(monkeypatch) -> FakeCuda:
    fake = FakeCuda()
    torch = SimpleNamespace(cuda=fake, version=SimpleNamespace(cuda="12.8"))
    monkeypatch.setitem(sys.modules, "torch", torch)
    return fake


def test_every_device_is_described(cuda):
    devices = environment(0)["devices"]
    assert [d["name"] for d in devices] == ["GPU 0", "GPU 1"]
    assert devices[0]["memory_mib"] == 80 * 1024
    assert devices[0]["compute_capability"] == "9.0"
    assert devices[0]["cuda"] == "12.8"
    assert "driver" in devices[0]


def test_the_peak_of_a_step_is_that_of_the_fullest_device_and_begins_anew(cuda):
    clock = Clock()
    assert clock.take(1)["memory/peak_device_mib"] == 5 * 1024
    assert clock.take(1)["memory/peak_device_mib"] == 1024


def test_all_memory_of_a_device_that_is_here(cuda):
    assert total_device_bytes("cuda:1") == 80 * GIB
    assert total_device_bytes("cuda:2") is None
    assert total_device_bytes("cpu") is None


def test_without_a_device_nothing_is_said():
    assert describe_devices() == []
    assert peak_device_bytes() is None
    assert "memory/peak_device_mib" not in Clock().take(1)


def test_torch_is_not_imported_for_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    assert describe_devices() == []
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n", "550.54.15"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n",
            "570.86.10",
        ),
        ("nothing", None),
    ],
)
def test_the_driver_is_read_from_the_kernel_module(tmp_path, text, version):
    path = tmp_path / "version"
    path.write_text(text)
    assert driver_version(path) == version
    assert driver_version(tmp_path / "absent") is None
