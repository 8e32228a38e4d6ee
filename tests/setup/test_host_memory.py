"""The host's memory: how much there is, and how much of it micro-batches take."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

from opd import config
from opd.demo.run_config import demo_config
from opd.run.host_memory import free_host_bytes, processes_on_host, total_host_bytes
from opd.samplers.hf import HOST_FRACTION
from opd.setup import memory_plan
from opd.setup.memory_advice import first_that_fits
from opd.setup.memory_models import HOST, DeviceMemory, machine_memory
from opd.setup.memory_plan import AUTO_TOKENS, CPU_CHOICES, CPU_USABLE, plan_memory
from opd.setup.token_budget import token_budget

GIB = 2**30


@pytest.mark.parametrize("processes", [1, 2])
def test_micro_batches_of_a_cpu_leave_half_of_its_memory(memory_table, processes):
    cfg = memory_table.base_run("0.6B", 4096, lora=True)

    def planned(gib, *overrides):
        run = config.parse(config.dump(cfg), overrides)
        free, read = {HOST: processes * gib * GIB}, memory_table.read_shape
        return plan_memory(
            run, device=HOST, memory=DeviceMemory.idle(free), processes=processes, read=read
        )

    def half_is_enough(plan, gib):
        needed = [p.total for p in plan.phases if p.phase in ("score", "update")]
        return max(needed) <= CPU_USABLE * processes * gib * GIB

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
        return plan_memory(
            cfg, device=HOST, memory=DeviceMemory.idle(free), processes=processes, read=read
        )

    rows = [planned(gib).rows for gib in (8, 32, 64, 512)]
    assert rows == sorted(rows)
    assert 1 <= rows[0] < rows[1] < rows[2] < rows[3] == 128
    assert planned(64, processes=2).rows == rows[1]
    (rollout,) = (p for p in planned(64).phases if p.phase == "rollout")
    assert rollout.parts["sampled rows"] <= HOST_FRACTION * 64 * GIB


def test_processes_of_a_host_share_its_memory(memory_table, monkeypatch):
    """One process was held against all of it, so that eight of them were called small enough."""
    cfg = memory_table.base_run("4B", 4096, lora=False)
    overrides = ("optim.offload=cpu", "student.precision=bf16_mixed")
    cfg = config.parse(config.dump(cfg), overrides)
    device, read = "cuda:0", memory_table.read_shape

    def planned(of_host, everywhere=8):
        monkeypatch.setenv("WORLD_SIZE", str(everywhere))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(of_host))
        memory = DeviceMemory.idle({device: 80 * GIB, HOST: 128 * GIB})
        return plan_memory(cfg, device=device, memory=memory, read=read)

    one, four = planned(1), planned(4)
    assert one.peak(device) == four.peak(device)
    assert one.fits(HOST)
    assert not four.fits(HOST)
    phases = [{p.phase: p for p in plan.phases if p.device == HOST} for plan in (one, four)]
    for name in ("offloaded optimizer", "rollouts and scores"):
        alone, together = (by_phase["update"].parts[name] for by_phase in phases)
        assert together == 4 * alone > 0, name
    for phase, name in (("save", "model being written"), ("load", "model being read")):
        alone, together = (by_phase[phase].parts[name] for by_phase in phases)
        assert together == alone, name


@pytest.mark.parametrize(
    ("lora", "overrides", "copies"),
    [
        (False, (), {"student weights": 2, "gradients": 2, "teacher weights": 1}),
        (True, (), {"student weights": 1, "gradients": 2, "teacher weights": 1}),
        (True, ("teacher.offload=disk",), {"teacher that scores": 1}),
        (True, ("teacher.dtype=int8",), {"teacher being read": 1}),
    ],
)
def test_weights_that_are_only_read_are_in_host_memory_once(memory_table, lora, overrides, copies):
    """Four adapters on one mapped file were refused for want of four times its size."""
    cfg = memory_table.base_run("0.6B", 4096, lora=lora)
    cfg = config.parse(config.dump(cfg), overrides)

    def most(processes):
        memory = DeviceMemory.idle({HOST: 128 * GIB})
        read = memory_table.read_shape
        plan = plan_memory(cfg, device=HOST, memory=memory, processes=processes, read=read)
        needed = Counter()
        for phase in plan.phases:
            needed |= Counter(phase.parts)
        return needed

    one, two = most(1), most(2)
    assert {name: two[name] / one[name] for name in copies} == copies


def test_the_first_process_of_a_host_judges_what_is_free_there(memory_table, monkeypatch):
    cfg = memory_table.base_run("0.6B", 4096, lora=True)
    monkeypatch.setattr(memory_plan, "machine_memory", lambda names: DeviceMemory.idle({HOST: GIB}))
    for rank, fits in (("", False), ("0", False), ("1", None)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        plan = plan_memory(cfg, device=HOST, read=memory_table.read_shape)
        assert plan.fits(HOST) is fits


@pytest.mark.parametrize(
    ("said", "everywhere", "here"), [("2", 4, 2), ("", 4, 4), ("8", 1, 1), (None, 4, 4)]
)
def test_processes_on_a_host_are_as_many_as_is_said(monkeypatch, said, everywhere, here):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if said is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", said)
    assert processes_on_host(everywhere) == here


@pytest.fixture
def host(tmp_path):
    """Writes a host of 900 kB, 500 of them free, and the control groups of this process."""

    def make(own="", **files):
        proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
        (proc / "self").mkdir(parents=True, exist_ok=True)
        (proc / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\n")
        (proc / "self" / "cgroup").write_text(own)
        for name, text in files.items():
            path = cgroup / name.replace("__", "/")
            path = path.with_name(path.name.replace("_", ".", 1))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return proc, cgroup

    return make


def test_memory_of_a_host_without_limits(tmp_path, host):
    nowhere = tmp_path / "none"
    assert (total_host_bytes(nowhere, nowhere), free_host_bytes(nowhere, nowhere)) == (None, None)
    for where in (host(), host(memory_max="max", memory_current=1000)):
        assert (total_host_bytes(*where), free_host_bytes(*where)) == (900 * 1024, 500 * 1024)


def test_memory_of_a_container(host):
    files = {"memory_max": 2000, "memory_current": 1000, "memory_stat": "anon 3\ninactive_file 300"}
    where = host("0::/\n", **files)
    assert (total_host_bytes(*where), free_host_bytes(*where)) == (2000, 1300)


def test_the_limit_of_a_group_around_this_one_counts(host):
    """A job of a cluster: the limit is two folders up, and the process sees the whole path."""
    files = {"slurm__job__memory_max": 5000, "slurm__job__memory_current": 800}
    where = host("0::/slurm/job/step\n", slurm__job__step__memory_max="max", **files)
    assert (total_host_bytes(*where), free_host_bytes(*where)) == (5000, 4200)


def test_memory_of_the_first_version_of_control_groups(host):
    files = {
        "memory__a__memory_limit_in_bytes": 3000,
        "memory__a__memory_usage_in_bytes": 1000,
        "memory__a__memory_stat": "total_inactive_file 100",
        "memory__memory_limit_in_bytes": 9223372036854771712,  # none
        "memory__memory_usage_in_bytes": 1000,
    }
    where = host("4:memory:/a\n3:cpu,cpuacct:/b\n", **files)
    assert (total_host_bytes(*where), free_host_bytes(*where)) == (3000, 2100)


@pytest.fixture
def small_run(tmp_path, monkeypatch):
    """The demo's run on a host of a given size, of which a part is free."""

    def make(total, free, *overrides):
        memory = DeviceMemory({HOST: free}, {HOST: total})
        monkeypatch.setattr(memory_plan, "machine_memory", lambda devices: memory)
        return config.parse(
            demo_config(tmp_path / "run"), ["train.prompts_per_step=2048", *overrides]
        )

    return make


def test_the_run_and_its_plan_choose_the_same_whatever_is_free(small_run):
    most = {}
    for tokens in CPU_CHOICES:
        cfg = small_run(2**50, 2**50, f"train.tokens_per_microbatch={tokens}")
        most[tokens] = plan_memory(cfg).peak(HOST).total
    chosen = set()
    for size in (2**20, 2 * most[2048] + 1, 2 * most[4096] + 1, 2**50):
        for free in (size, 0.9 * size, 2**20):
            cfg = small_run(size, free)
            plan = plan_memory(cfg, longest_prompt=4)
            assert token_budget(cfg) == plan.tokens_per_microbatch
        chosen.add(token_budget(cfg))
    assert {min(CPU_CHOICES), AUTO_TOKENS} <= chosen
    assert len(chosen) > 2
    assert token_budget(small_run(2**20, 2**20, "train.tokens_per_microbatch=77")) == 77


def test_where_the_size_of_the_memory_is_not_known_the_run_chooses_the_most(small_run, monkeypatch):
    cfg = small_run(2**50, 2**50)
    monkeypatch.setattr(memory_plan, "machine_memory", lambda devices: DeviceMemory({}, {}))
    assert token_budget(cfg) == AUTO_TOKENS


def test_where_another_program_has_the_memory_something_is_advised(memory_table):
    """What is advised was planned as if the rest were all there is: nothing had to be set."""
    cfg = memory_table.base_run("0.6B", 1024, lora=True)
    advised = 0
    for total in (24, 32, 48, 64):
        for free in range(4, total, 4):
            memory = DeviceMemory({HOST: free * GIB}, {HOST: total * GIB})
            read = memory_table.read_shape
            plan = partial(plan_memory, device=HOST, memory=memory, processes=1, read=read)
            if not plan(cfg).too_small:
                continue
            found = first_that_fits(cfg, plan)
            if found is not None:
                advised += 1
                assert found[0] != ()
                assert not plan(config.parse(config.dump(cfg), found[0])).too_small
    assert advised


def test_this_machine_has_some():
    assert 0 < machine_memory([HOST]).free[HOST] <= machine_memory([HOST]).total[HOST]
