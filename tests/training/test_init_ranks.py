"""Which backend the processes of a run use, with a fake of torch.distributed."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from opd.training import distributed
from opd.training.distributed import init_ranks


@pytest.fixture
def opened(monkeypatch):
    """The backends of the groups that are opened, in a process of two."""
    backends: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed._Waiting, "group", None)
    fakes = {
        "is_initialized": lambda: False,
        "init_process_group": lambda backend, **options: backends.append(backend),
        "new_group": lambda backend, **options: backend,
        "get_rank": lambda: 1,
        "get_world_size": lambda: 2,
        "get_default_backend_for_device": lambda device: {"cuda": "nccl"}[
            torch.device(device).type
        ],
    }
    for name, value in fakes.items():
        monkeypatch.setattr(dist, name, value)
    return backends


def test_a_torch_for_gpus_on_a_machine_without_one_uses_gloo(monkeypatch, opened):
    compiled_for = torch.device("cuda")
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: compiled_for)
    assert torch.accelerator.current_accelerator() == compiled_for
    assert init_ranks().size == 2
    assert opened == ["gloo"]


def test_processes_on_gpus_sum_by_nccl_and_wait_by_gloo(monkeypatch, opened):
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    assert init_ranks().group == "gloo"
    assert opened == ["cpu:gloo,cuda:nccl"]
    assert chosen == [1]
