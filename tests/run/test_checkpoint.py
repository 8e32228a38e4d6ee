"""Tensors, optimizer state and JSON come back bit for bit; broken checkpoints are named."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

from opd.errors import UserError
from opd.run.checkpoint import find_newest_checkpoint, save_tensors
from opd.run.manifest import MANIFEST
from opd.run.optimizer import (
    flatten_optimizer,
    group_settings,
    restore_group_settings,
    restore_optimizer,
)
from support.faulty_disk import Unsynced, killed_at

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def random_bits(dtype, *shape, seed=0):
    """Any bit pattern, NaNs with payloads included (bool: 0 and 1)."""
    rng = np.random.default_rng(seed)
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool:
        return torch.from_numpy(rng.integers(0, 2, shape).astype(bool))
    size = torch.empty(0, dtype=dtype).element_size()
    raw = rng.integers(0, 256, math.prod(shape) * size, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(shape)


def same_bits(a, b):
    raw = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def put(folder, step, seed=0, **options):
    tensors = {"student": {"w": random_bits(torch.float32, 4, 3, seed=seed)}}
    return save_tensors(folder, step, tensors, {"step": step}, ops=Unsynced(), **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_survive(tmp_path, dtype):
    weird = {
        "matrix": random_bits(dtype, 5, 7),
        "transposed": random_bits(dtype, 5, 7, seed=1).T,
        "scalar": random_bits(dtype, 1, seed=2)[0],
        "empty": random_bits(dtype, 0, 3),
        "one": random_bits(torch.uint8, 3, seed=3),
        "wide": random_bits(torch.float64, 3, seed=4),
    }
    save_tensors(tmp_path, 7, {"student": weird, "nothing": {}}, {}, ops=Unsynced())
    tensors, _ = find_newest_checkpoint(tmp_path).load()
    assert set(tensors) == {"student", "nothing"}
    assert set(tensors["student"]) == set(weird)
    assert tensors["nothing"] == {}
    for name, tensor in weird.items():
        assert same_bits(tensors["student"][name], tensor), name


def test_pieces_of_a_big_tensor_are_put_together(tmp_path):
    big = torch.arange(3_000_001, dtype=torch.int32)
    path = save_tensors(tmp_path, 1, {"student": {"big": big}}, {}, ops=Unsynced())
    assert torch.equal(safetensors.torch.load_file(path / "student.safetensors")["big"], big)


def test_state_survives(tmp_path):
    state = {
        "f": 0.1 + 0.2,
        "big": 2**80,
        "none": None,
        "text": "é\n\ud800",
        "list": [1, {"a": -0.0}],
    }
    save_tensors(tmp_path, 1, {}, state, ops=Unsynced())
    assert json.dumps(find_newest_checkpoint(tmp_path).load()[1], sort_keys=True) == json.dumps(
        state, sort_keys=True
    )


def test_state_without_json_form_is_refused_before_writing(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_tensors(tmp_path, 1, {}, {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tied",
    [
        lambda w: {"embed": w, "head": w},
        lambda w: {"all": w, "rows": w[1:3]},
        lambda w: {"a": w, "b": w.T},
        lambda w: {"z": w.view(-1)[5:], "front": w.view(-1)[:6]},
    ],
)
def test_tied_tensors_are_refused(tmp_path, tied):
    with pytest.raises(ValueError, match="share memory"):
        save_tensors(tmp_path, 1, {"student": tied(torch.zeros(4, 3))}, {})
    assert list(tmp_path.iterdir()) == []


def test_neighbours_in_one_buffer_are_not_tied(tmp_path):
    flat = torch.arange(12.0)
    save_tensors(tmp_path, 1, {"student": {"a": flat[:6], "b": flat[6:]}}, {}, ops=Unsynced())
    assert torch.equal(
        find_newest_checkpoint(tmp_path).load()[0]["student"]["b"], torch.arange(6.0, 12.0)
    )


def test_bad_group_names_are_refused(tmp_path):
    for name in ("", "../student", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="cannot name"):
            save_tensors(tmp_path, 1, {name: {}}, {})


def test_nothing_there(tmp_path):
    assert find_newest_checkpoint(tmp_path) is None
    assert find_newest_checkpoint(tmp_path / "absent") is None


def cut_tensors(path):
    file = path / "student.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def flip_bit(path):
    file = path / "student.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def empty_folder(path):
    shutil.rmtree(path)
    path.mkdir()


def other_step(path):
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step-10"), path)


def newer_schema(path):
    file = path / MANIFEST
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 2'))


def unlisted_file(path):
    (path / "extra.safetensors").write_bytes(b"")


BREAKAGE = [
    (cut_tensors, "student.safetensors has .* bytes"),
    (flip_bit, "sha256 of student.safetensors"),
    (lambda p: (p / MANIFEST).unlink(), "MANIFEST.json is missing"),
    (lambda p: (p / MANIFEST).write_bytes(b""), "not a manifest"),
    (lambda p: (p / MANIFEST).write_bytes(b"[1]"), "not a manifest"),
    (lambda p: (p / MANIFEST).write_bytes(b'{"schema": 1, "step": 20, "files": 3}'), "not a man"),
    (empty_folder, "MANIFEST.json is missing"),
    (lambda p: (p / "student.safetensors").write_bytes(b""), "has 0 bytes"),
    (lambda p: (p / "state.json").unlink(), "state.json is missing"),
    (other_step, "is of step 10"),
    (newer_schema, "schema 2, this opd reads 1"),
    (unlisted_file, "extra.safetensors is not in MANIFEST.json"),
]


@pytest.mark.parametrize(("wreck", "reason"), BREAKAGE)
def test_broken_ones_are_named_and_skipped(tmp_path, caplog, wreck, reason):
    put(tmp_path, 10)
    put(tmp_path, 20)
    wreck(tmp_path / "step-20")
    found = find_newest_checkpoint(tmp_path)
    assert found.step == 10
    assert found.load()[1] == {"step": 10}
    ((path, why),) = found.skipped
    assert path == tmp_path / "step-20"
    assert re.search(reason, why)
    assert f"{path}: {why}" in caplog.text


def test_half_folders_and_other_files_are_no_checkpoints(tmp_path, caplog):
    put(tmp_path, 10)
    shutil.copytree(tmp_path / "step-10", tmp_path / "step-20.tmp-1")
    (tmp_path / "step-30").write_text("a file")
    (tmp_path / "step-x").mkdir()
    found = find_newest_checkpoint(tmp_path)
    assert (found.step, found.skipped, caplog.text) == (10, (), "")


def test_when_every_one_is_broken_a_person_decides(tmp_path):
    for step in (10, 20):
        flip_bit(put(tmp_path, step))
    with pytest.raises(UserError) as caught:
        find_newest_checkpoint(tmp_path)
    for word in ("step-10", "step-20", "sha256", "--overwrite"):
        assert word in str(caught.value)


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(tmp_path):
    """Whatever bit of whatever file changes, what is loaded is right or refused."""
    path = put(tmp_path, 10)
    want, _ = find_newest_checkpoint(tmp_path).load()
    rng = np.random.default_rng(0)
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        for place in rng.choice(len(good), size=min(60, len(good)), replace=False):
            bad = bytearray(good)
            bad[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(bad)
            try:
                tensors, state = find_newest_checkpoint(tmp_path).load()
            except UserError:
                continue
            assert file.name == MANIFEST
            assert same_bits(tensors["student"]["w"], want["student"]["w"])
            assert state == {"step": 10}
        file.write_bytes(good)


def test_steps_are_compared_as_numbers(tmp_path):
    for step in (9, 10, 100):
        put(tmp_path, step, keep=9)
    assert find_newest_checkpoint(tmp_path).step == 100


def test_killed_in_the_middle_of_a_real_save(tmp_path):
    put(tmp_path, 10, keep=1)
    assert killed_at(
        9, lambda ops: save_tensors(tmp_path, 20, {"student": {}}, {}, keep=1, ops=ops)
    )
    assert find_newest_checkpoint(tmp_path).step == 10


def make_trainer(seed, dtype=torch.float32):
    torch_seeded = torch.Generator().manual_seed(seed)
    layers = {
        "a.weight": torch.nn.Parameter(torch.randn(4, 3, generator=torch_seeded).to(dtype)),
        "b.bias": torch.nn.Parameter(torch.randn(4, generator=torch_seeded).to(dtype)),
        "unused": torch.nn.Parameter(torch.randn(2, generator=torch_seeded).to(dtype)),
    }
    groups = [
        {"params": [layers["a.weight"]], "weight_decay": 0.1},
        {"params": [layers["b.bias"], layers["unused"]], "lr": 0.05},
    ]
    return layers, torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95))


def advance(layers, optimizer, steps):
    for step in steps:
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(100 + step))
        y = x.to(layers["b.bias"].dtype) @ layers["a.weight"].T + layers["b.bias"]
        optimizer.zero_grad()
        y.square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("at", [0, 1, 3])
def test_training_goes_on_as_if_never_interrupted(tmp_path, dtype, at):
    straight, straight_optimizer = make_trainer(0, dtype)
    advance(straight, straight_optimizer, range(6))

    layers, optimizer = make_trainer(0, dtype)
    advance(layers, optimizer, range(at))
    names = {p: n for n, p in layers.items()}
    groups = {"student": layers, "optimizer": flatten_optimizer(optimizer, names)}
    save_tensors(tmp_path, at, groups, {"groups": group_settings(optimizer)}, ops=Unsynced())

    again, again_optimizer = make_trainer(99, dtype)
    again_names = {p: n for n, p in again.items()}
    tensors, state = find_newest_checkpoint(tmp_path).load()
    with torch.no_grad():
        for name, parameter in again.items():
            parameter.copy_(tensors["student"][name])
    restore_optimizer(again_optimizer, again_names, tensors["optimizer"])
    restore_group_settings(again_optimizer, state["groups"])
    advance(again, again_optimizer, range(at, 6))

    for name in straight:
        assert same_bits(straight[name].detach(), again[name].detach()), name
    want = flatten_optimizer(straight_optimizer, {p: n for n, p in straight.items()})
    have = flatten_optimizer(again_optimizer, again_names)
    assert want.keys() == have.keys()
    assert all(same_bits(want[n], have[n]) for n in want)
    assert not any("unused" in n for n in want)
    assert group_settings(straight_optimizer) == group_settings(again_optimizer)


def test_optimizer_state_of_another_model_is_refused():
    layers, optimizer = make_trainer(0)
    advance(layers, optimizer, range(1))
    names = {p: n for n, p in layers.items()}
    flat = flatten_optimizer(optimizer, names)
    _, fresh = make_trainer(0)
    fresh_names = dict(
        zip((p for g in fresh.param_groups for p in g["params"]), layers, strict=True)
    )
    with pytest.raises(KeyError, match="unknown parameters"):
        restore_optimizer(fresh, fresh_names, flat | {"step/other": torch.zeros(())})
    with pytest.raises(ValueError, match=r"exp_avg of a\.weight"):
        restore_optimizer(fresh, fresh_names, flat | {"exp_avg/a.weight": torch.zeros(2)})


def test_state_that_is_not_adamw_is_refused():
    layers, _ = make_trainer(0)
    optimizer = torch.optim.AdamW(list(layers.values()), amsgrad=True)
    advance(layers, optimizer, range(1))
    with pytest.raises(KeyError, match="max_exp_avg_sq"):
        flatten_optimizer(optimizer, {p: n for n, p in layers.items()})
