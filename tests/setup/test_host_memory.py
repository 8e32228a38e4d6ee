"""The host's memory: how much there is, and how much of it micro-batches take."""

from __future__ import annotations

import pytest

from opd import config
from opd.run.devices import free_host_bytes, total_host_bytes
from opd.samplers.hf import HOST_FRACTION
from opd.setup import memory_models
from opd.setup.memory_models import HOST
from opd.setup.memory_plan import AUTO_TOKENS, CPU_CHOICES, CPU_USABLE, plan_memory

GIB = 2**30


@pytest.mark.parametrize("processes", [1, 2])
def test_micro_batches_of_a_cpu_leave_half_of_its_memory(memory_table, processes):
    cfg = memory_table.base_run("0.6B", 4096, lora=True)

    def planned(gib, *overrides):
        run = config.parse(config.dump(cfg), overrides)
        free, read = {HOST: processes * gib * GIB}, memory_table.read_shape
        return plan_memory(run, device=HOST, free=free, processes=processes, read=read)

    def half_is_enough(plan, gib):
        needed = [p.total for p in plan.phases if p.phase in ("score", "update")]
        return max(needed) <= CPU_USABLE * gib * GIB

    tokens = {gib: planned(gib).tokens_per_microbatch for gib in (24, 48, 64, 128)}
    assert list(tokens.values()) == sorted(tokens.values())
    assert tokens[24] == min(CPU_CHOICES)
    assert tokens[128] == max(CPU_CHOICES) == AUTO_TOKENS
    for gib, chosen in tokens.items():
        if chosen > min(CPU_CHOICES):
            assert half_is_enough(planned(gib), gib)
        if chosen < max(CPU_CHOICES):
            more = planned(gib, f"train.tokens_per_microbatch={2 * chosen}")
            assert not half_is_enough(more, gib)


def test_rows_of_a_cpu_are_those_that_a_part_of_its_memory_holds(memory_table):
    cfg = memory_table.base_run("0.6B", 4096, lora=True)

    def planned(gib, processes=1):
        free = {HOST: gib * GIB}
        read = memory_table.read_shape
        return plan_memory(cfg, device=HOST, free=free, processes=processes, read=read)

    rows = [planned(gib).rows for gib in (8, 32, 64, 512)]
    assert rows == sorted(rows)
    assert 1 <= rows[0] < rows[1] < rows[2] < rows[3] == 128
    assert planned(64, processes=2).rows == rows[1]
    (rollout,) = (p for p in planned(64).phases if p.phase == "rollout")
    assert rollout.parts["sampled rows"] <= HOST_FRACTION * 64 * GIB


def test_free_memory_of_a_container(tmp_path):
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    assert free_host_bytes(meminfo, cgroup) is None
    meminfo.write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\n")
    assert free_host_bytes(meminfo, cgroup) == 500 * 1024
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("1000\n")
    assert free_host_bytes(meminfo, cgroup) == 500 * 1024
    (cgroup / "memory.max").write_text("2000\n")
    (cgroup / "memory.stat").write_text("anon 3\ninactive_file 300\n")
    assert free_host_bytes(meminfo, cgroup) == 1300


def test_all_memory_of_a_container(tmp_path):
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    cgroup.mkdir()
    assert total_host_bytes(meminfo, cgroup) is None
    meminfo.write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\n")
    assert total_host_bytes(meminfo, cgroup) == 900 * 1024
    (cgroup / "memory.max").write_text("max\n")
    assert total_host_bytes(meminfo, cgroup) == 900 * 1024
    (cgroup / "memory.max").write_text("2000\n")
    assert total_host_bytes(meminfo, cgroup) == 2000


def test_this_machine_has_some():
    assert memory_models.free_memory([HOST])[HOST] > 0
