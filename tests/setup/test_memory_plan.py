"""What a run needs of its devices, what is said where they are too small, and the table in docs."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from opd import config
from opd.commands.check.memory import check_memory
from opd.commands.check.run import run_check
from opd.demo.run_config import demo_config
from opd.errors import UserError
from opd.models.lm import load_lm
from opd.recipes.check.verdict import NO_GO
from opd.setup import memory_advice, memory_plan
from opd.setup.memory_advice import find_shortage, first_that_fits, require_memory
from opd.setup.memory_models import HOST, DeviceMemory, pinned_pieces
from opd.setup.memory_plan import GPU_CHOICES, PROCESS, plan_memory
from opd.setup.planned_memory import USABLE

DEVICE, GIB = "cuda:0", 2**30


@pytest.fixture
def plan(memory_table):
    def make(student="4B", *overrides, length=4096, lora=False, gib=78.5, host=256, processes=1):
        cfg = memory_table.base_run(student, length, lora=lora)
        return plan_memory(
            config.parse(config.dump(cfg), overrides),
            device=DEVICE,
            memory=DeviceMemory.idle({DEVICE: round(gib * GIB), HOST: host * GIB}),
            processes=processes,
            read=memory_table.read_shape,
        )

    return make


def parts(plan, phase, device=DEVICE):
    return next(p.parts for p in plan.phases if (p.phase, p.device) == (phase, device))


def test_the_table_in_the_docs_is_that_of_the_plan(memory_table):
    text = memory_table.PAGE.read_text(encoding="utf-8")
    assert text == memory_table.updated(text, memory_table.make_rows())


def test_4b_in_full_with_an_8b_teacher_on_80_gb(plan):
    assert plan().too_small == [DEVICE]  # masters and moments are too much
    offloaded = plan("4B", "optim.offload=cpu", "student.gradient_checkpointing=true")
    assert offloaded.too_small == []
    update = parts(offloaded, "update")
    assert update["gradients"] == 2 * update["student weights"]  # float32 beside bf16
    assert "master weights" not in update
    assert parts(offloaded, "update", HOST)["offloaded optimizer"] > 16 * 4.02e9


def test_an_offloaded_teacher_waits_in_pinned_pieces_of_a_gib(plan):
    assert [pinned_pieces(n) for n in (0, 5, 2**30, 2**30 + 5)] == [0, 8, 2**30, 2**30 + 8]
    planned = plan("1.7B", "teacher.offload=cpu")
    moved = parts(planned, "score")["teacher that scores"]
    held = parts(planned, "rollout", HOST)["offloaded teachers"]
    assert held == pinned_pieces(moved) >= moved > 2**30


def test_a_step_that_was_measured_on_a_gpu(plan):
    """An H100: 43 GiB in the rollout, 24 in scoring, 41 in the update (docs/gpu.md)."""
    planned = plan(
        "4B",
        "optim.offload=cpu",
        "student.gradient_checkpointing=true",
        "train.tokens_per_microbatch=8192",
        "train.prompts_per_step=8",
        "prompts.max_tokens=4032",
        "rollout.max_new_tokens=64",
    )
    assert planned.rows == 32
    for phase, measured in {"rollout": 43, "score": 24, "update": 41}.items():
        assert sum(parts(planned, phase).values()) / GIB == pytest.approx(measured, rel=0.05)


def test_moments_of_8_bits_are_an_alternative_to_offload(plan):
    overrides = ("optim.moments=int8", "student.gradient_checkpointing=true")
    smaller = plan("4B", *overrides)
    assert smaller.too_small == []
    moments = parts(smaller, "update")["optimizer moments"]
    assert moments == pytest.approx(2.03 * 4.02e9, rel=0.01)
    assert parts(plan(), "update")["optimizer moments"] == pytest.approx(8 * 4.02e9, rel=0.01)


def test_8b_lora_with_a_32b_teacher_on_80_gb(plan):
    checkpointing = "student.gradient_checkpointing=true"
    teachers = (
        ("teacher.model=32B-4bit", "teacher.dtype=auto"),
        ("teacher={url: http://127.0.0.1:1/v1, model: x}",),
    )
    assert plan("8B", checkpointing, lora=True).too_small == [DEVICE]
    for overrides in teachers:
        assert plan("8B", checkpointing, *overrides, lora=True).too_small == []


def test_rows_and_micro_batches_follow_the_memory(plan):
    plans = [plan("1.7B", lora=True, gib=gib) for gib in (22, 24, 30, 78)]
    rows = [p.rows for p in plans]
    tokens = [p.tokens_per_microbatch for p in plans]
    assert rows == sorted(rows)
    assert 1 <= rows[0] < rows[-1] <= 128
    assert tokens == sorted(tokens)
    assert set(tokens) <= set(GPU_CHOICES)
    assert tokens[0] < tokens[-1]


def test_a_device_that_fits_has_room_to_spare(plan):
    fitting = plan("0.6B")
    peak = fitting.peak(DEVICE).total
    assert fitting.too_small == []
    assert peak <= USABLE * fitting.free[DEVICE]


def test_shards_are_smaller_with_more_processes(plan):
    sizes = [
        sum(
            parts(plan("4B", "student.shard=fsdp2", processes=n), "update")[name]
            for name in ("student weights", "optimizer moments")
        )
        for n in (2, 4, 8)
    ]
    assert sizes[0] == pytest.approx(2 * sizes[1], rel=1e-6)
    assert sizes[1] == pytest.approx(2 * sizes[2], rel=1e-6)
    assert "gathered weights" in parts(plan("4B", "student.shard=fsdp2", processes=4), "rollout")


def test_gradients_that_would_fill_a_card_are_planned_as_they_are_reduced(plan):
    """A run on eight cards was refused for gradients that it never holds whole."""
    overrides = (
        "student.shard=fsdp2",
        "student.gradient_checkpointing=true",
        "teacher={url: http://127.0.0.1:1/v1, model: x}",
    )
    large = plan("8B", *overrides, gib=39, processes=8)
    assert parts(large, "update")["gradients"] < 0.5 * 4 * 8.2e9
    assert large.too_small == []
    small = plan("0.6B", *overrides, gib=39, processes=8)
    assert parts(small, "update")["gradients"] == pytest.approx(9 / 8 * 4 * 0.596e9, rel=0.01)


def test_a_sharded_student_is_never_whole_on_a_card_while_it_is_loaded(plan):
    """All float32 weights were planned, and loaded, on each card."""
    overrides = ("student.shard=fsdp2", "teacher={url: http://127.0.0.1:1/v1, model: x}")
    planned = plan("8B", *overrides, gib=24, processes=8)
    largest = 2 * 151_936 * 4096  # embedding and head, one unit
    assert parts(planned, "load")["student weights"] <= 4 * (8.2e9 / 8 + largest)
    assert parts(planned, "load", "cpu")["model being read"] == pytest.approx(
        2 * 8.2e9, rel=0.01
    ), "as it is stored"


def test_a_teacher_on_another_device_is_counted_there(plan):
    planned = plan("1.7B", "teacher.device=cuda:1")
    assert planned.devices == (DEVICE, "cuda:1", HOST)
    assert "teacher weights" not in parts(planned, "update")
    assert parts(planned, "score", "cuda:1")["teacher weights"] > 16e9
    assert planned.fits("cuda:1") is None  # nothing is known of it


def test_what_is_too_small_is_told_with_what_would_fit(memory_table):
    cfg = memory_table.base_run("4B", 4096, lora=False)
    found = first_that_fits(cfg, lambda changed: memory_table.plan_on(changed, 80))
    assert found[0] == ("optim.offload=cpu",)
    assert first_that_fits(cfg, lambda changed: memory_table.plan_on(changed, 24)) is None


def test_smaller_micro_batches_are_proposed_on_a_cpu(memory_table):
    cfg = memory_table.base_run("0.6B", 1024, lora=False)
    large = ["rollout.path=recorded", "train.tokens_per_microbatch=8192"]
    cfg = config.parse(config.dump(cfg), large)  # recorded: else sampling needs most

    def plan(changed, free):
        return plan_memory(
            changed, device=HOST, memory=DeviceMemory.idle(free), read=memory_table.read_shape
        )

    smaller = config.parse(config.dump(cfg), ["train.tokens_per_microbatch=1024"])
    needed = [plan(c, {}).peak(HOST).total for c in (smaller, cfg)]
    assert needed[0] < 0.8 * needed[1]
    free = {HOST: round(needed[0] / USABLE) + 1}
    found = first_that_fits(cfg, lambda changed: plan(changed, free))
    assert found[0] == ("train.tokens_per_microbatch=1024",)


@pytest.mark.parametrize("device", [DEVICE, HOST])
def test_a_gpu_that_others_use_is_a_warning_where_its_batches_would_be_halved(
    memory_table, monkeypatch, device
):
    recorded = ["rollout.path=recorded"]  # else sampling needs most
    cfg = config.parse(config.dump(memory_table.base_run("0.6B", 1024, lora=True)), recorded)
    shape = {"device": device, "processes": 1, "read": memory_table.read_shape}
    monkeypatch.setattr(memory_advice, "plan_memory", partial(plan_memory, **shape))
    total = {DEVICE: 80 * GIB, HOST: 256 * GIB}
    small = config.parse(config.dump(cfg), ["train.tokens_per_microbatch=1024"])
    least, most = (
        plan_memory(c, memory=DeviceMemory.idle(total), **shape).peak(device).total
        for c in (small, cfg)
    )
    assert least < 0.9 * most
    free = total | {device: round((least + most) / 2 / USABLE)}
    plan = plan_memory(cfg, memory=DeviceMemory(free, total), **shape)
    shortage = find_shortage(cfg, plan)
    assert plan.tokens_per_microbatch >= 8192
    assert "train.tokens_per_microbatch=1024" in shortage.fix
    assert shortage.certain is (device == HOST)  # there a process is killed


def test_a_module_that_no_adapter_can_be_put_on_is_named_by_its_key_alone(tmp_path):
    """The message began with "config.json of student.lora.target_modules"."""
    changes = ["student.lora={rank: 2, target_modules: [q_proj, foo]}"]
    cfg = config.parse(config.dump(demo(tmp_path)), changes)
    with pytest.raises(UserError, match=r"^student\.lora\.target_modules=.*foo"):
        plan_memory(cfg, device=HOST, memory=DeviceMemory({}, {}))


def test_a_plan_knows_the_longest_prompt_and_how_many_tokens_a_step_has(memory_table):
    """Prompts of 41 tokens were planned as 1,024, and a step of 16 rows as 8,192 tokens: no-go."""
    cfg = memory_table.base_run("0.6B", 1024, lora=True)
    short = ["train.prompts_per_step=8", "rollout.n=2", "rollout.max_new_tokens=32"]
    cfg = config.parse(config.dump(cfg), [*short, "train.tokens_per_microbatch=8192"])

    def activations(changed, longest):
        plan = plan_memory(
            changed,
            device=HOST,
            memory=DeviceMemory({}, {}),
            read=memory_table.read_shape,
            longest_prompt=longest,
        )
        return parts(plan, "update", HOST)["activations"], plan.length

    worst, known = activations(cfg, None), activations(cfg, 41)
    assert known[1] == 41 + 32
    assert known[0] == pytest.approx(worst[0] * 16 * (41 + 32) / 8192, rel=0.02)
    tuned = config.parse(config.dump(cfg), ["coldstart={}"])
    assert activations(tuned, 41)[0] == worst[0]  # supervised batches are another size


def demo(folder):
    return config.parse(demo_config(folder / "run") | {"eval": []})


@pytest.fixture
def free(monkeypatch):
    """Sets what the host has free."""

    def have(size):
        memory = DeviceMemory({HOST: size}, {HOST: 64 * PROCESS})
        monkeypatch.setattr(memory_plan, "machine_memory", lambda devices: memory)

    return have


def test_enough_memory_is_an_ok(tmp_path, free):
    free(8 * PROCESS)
    found = check_memory(demo(tmp_path))
    assert found.finding.level == "ok"
    assert "host memory" in found.finding.message


def test_a_plan_beyond_what_is_free_fails_and_within_the_margin_warns(tmp_path, free):
    free(8 * PROCESS)
    needed = check_memory(demo(tmp_path)).plan.peak(HOST).total
    for size, certain in ((needed - 1, True), (needed + 1, False)):
        free(size)
        cfg = demo(tmp_path)
        assert find_shortage(cfg, plan_memory(cfg)).certain is certain


def test_a_check_refuses_before_weights_are_loaded(tmp_path, free, monkeypatch, capsys):
    import yaml

    free(PROCESS // 2)
    monkeypatch.setattr("opd.setup.pair.load_lm", None)  # loading anything would fail
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(demo_config(tmp_path / "run")))
    result = run_check(file, ())
    assert result.best.verdict == NO_GO
    text = " ".join(capsys.readouterr().out.split())
    assert "host memory" in text
    assert "docs/memory.md" in text
    assert config.load(file)


def test_a_run_that_will_not_fit_is_warned_of(tmp_path, free, caplog):
    free(PROCESS // 2)
    with caplog.at_level(logging.WARNING, logger=memory_advice.__name__):
        require_memory(demo(tmp_path))
    assert "planned" in caplog.text


def test_an_unreadable_model_is_left_to_the_loader(tmp_path):
    cfg = config.parse(config.dump(demo(tmp_path)), [f"student.model={tmp_path}/none"])
    assert check_memory(cfg) is None
    require_memory(cfg)


def untied(dtype="float32"):
    return Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1000,
        tie_word_embeddings=False,
        dtype=dtype,
    )


@pytest.mark.parametrize(
    ("device", "dtype", "tables"),
    [(HOST, "auto", 1), (HOST, "float32", 1), (HOST, "int8", 2), (DEVICE, "auto", 2)],
)
def test_rows_of_a_frozen_embedding_are_read_from_the_file(tmp_path, device, dtype, tables):
    """On a CPU and in the stored dtype, where nothing is converted, quantised or moved."""
    cfg = config.parse(demo_config(tmp_path / "run"), [f"teacher.dtype={dtype}"])
    made = AutoModelForCausalLM.from_config(untied())
    table = made.get_input_embeddings().weight.nbytes
    layers = [m for m in made.model.modules() if type(m) is nn.Linear]
    others = sum(p.nbytes for p in made.parameters()) - 2 * table
    if dtype == "int8":
        others -= sum(m.weight.nbytes - m.weight.numel() - 4 * m.out_features for m in layers)
    planned = plan_memory(cfg, device=device, memory=DeviceMemory({}, {}), read=lambda *_: untied())
    assert parts(planned, "score", device)["teacher weights"] == others + tables * table
    whole = sum(p.nbytes for p in made.parameters())  # the file, beside what is made of it
    assert parts(planned, "load", device).get("teacher being read", 0) == whole * (dtype == "int8")


def test_a_converted_teacher_is_planned_whole(tmp_path):
    cfg = config.parse(demo_config(tmp_path / "run"), ["teacher.dtype=bfloat16"])
    planned = plan_memory(cfg, device=HOST, memory=DeviceMemory({}, {}), read=lambda *_: untied())
    size = sum(p.numel() for p in AutoModelForCausalLM.from_config(untied()).parameters())
    assert parts(planned, "score", HOST)["teacher weights"] == 2 * size


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_weights_of_the_stored_dtype_stay_in_the_file(tmp_path):
    AutoModelForCausalLM.from_config(untied()).save_pretrained(tmp_path)

    def mapped(dtype):
        address = load_lm(str(tmp_path), dtype=dtype, device="cpu").causal.get_input_embeddings()
        at = address.weight.data_ptr()
        for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
            first, last = (int(x, 16) for x in line.split()[0].split("-"))
            if first <= at < last:
                return line.endswith("model.safetensors")
        return False

    assert mapped("auto")
    assert not mapped("bfloat16")


@pytest.mark.parametrize(
    ("offload", "dtype"), [("none", "float32"), ("disk", "float32"), ("none", "bfloat16")]
)
def test_masters_are_made_beside_the_file_of_a_student(tmp_path, offload, dtype):
    """A mapped file is given back as a whole: when its last weight has become another."""
    changes = ["student.precision=bf16_mixed", f"teacher.offload={offload}"]
    cfg = config.parse(demo_config(tmp_path / "run"), changes)
    made = AutoModelForCausalLM.from_config(untied())
    count = sum(p.numel() for p in made.parameters())
    table = made.get_input_embeddings().weight.nbytes
    planned = plan_memory(
        cfg, device=HOST, memory=DeviceMemory({}, {}), read=lambda *_: untied(dtype)
    )
    loading = parts(planned, "load", HOST)
    assert loading["student weights"] == 6 * count
    assert loading.get("student's file", 0) == 4 * count * (dtype == "float32")
    if offload == "disk":  # its weights are away when masters are made; its head is not
        assert loading["teacher weights"] == table
        assert "teacher being read" not in loading
