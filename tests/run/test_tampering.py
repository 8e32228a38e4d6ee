"""A run folder that was changed from outside: links, edited logs, damaged checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from opd.errors import UserError
from opd.run.checkpoint import find_newest_checkpoint, save_tensors
from opd.run.folder import RunFolder

CONFIG = {"student": {"model": "s"}, "teacher": {"model": "t"}, "train": {"seed": 0}}
NAMES = (
    *("metrics.jsonl", "timings.jsonl", "alarms.jsonl", "config.json", "env.json", "run.lock"),
    *("summary.json", "check.json", "inputs.json", "traceback.txt", "tokens.parquet"),
    *("checkpoints", "rollouts", "eval", "final", "best", "wrong-answers", "sync", "coldstart"),
    *("rollouts/step-1.parquet", "eval/step-1-a.json", "checkpoints/step-1", "final/config.json"),
    *("checkpoints/step-1/state.json", "checkpoints/step-1/student.safetensors"),
)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    with RunFolder.create(folder, CONFIG) as made:
        made.log_metrics(1, {"loss": 1.0})
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_nothing_is_read_or_written_through_a_link(run, tmp_path, name, flag):
    """A folder from somebody else could so destroy a file of the user's."""
    precious = tmp_path / "precious"
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
        precious.mkdir()
        (precious / "mine").write_text("mine")
    else:
        path.unlink(missing_ok=True)
        precious.write_text("mine")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(precious)
    with pytest.raises(UserError, match=f"{path.name} is a symbolic link"):
        RunFolder.create(run, CONFIG, **{flag: True})
    mine = precious / "mine" if precious.is_dir() else precious
    assert mine.read_text() == "mine"
    assert path.is_symlink()


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link"])
def test_something_else_in_place_of_a_log_is_named(run, kind):
    path = run / "timings.jsonl"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"timings\.jsonl is a"):
        RunFolder.create(run, CONFIG, resume=True)


def test_the_run_folder_itself_may_be_a_link(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    with RunFolder.create(tmp_path / "link", CONFIG, resume=True) as folder:
        assert not folder.fresh


@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl", "alarms.jsonl"])
def test_every_line_of_a_log_is_covered_by_a_hash(run, caplog, name):
    """A flipped byte in metrics.jsonl went unnoticed: its length is the same."""
    with RunFolder.create(run, CONFIG, resume=True) as folder:
        for step in range(2, 5):
            folder.log_metrics(step, {"loss": 1.0 / step})
            folder.log_timings(step, {"time/step_s": 1.0})
            folder.log_alarm({"step": step, "name": "mass"})
        offsets, digests = folder.sync_logs(), folder.log_digests()
    with RunFolder.create(run, CONFIG, resume=True) as folder:
        folder.truncate_logs(offsets, digests)
    assert "is not what this run wrote" not in caplog.text
    path = run / name
    data = path.read_text()
    path.write_text(data.replace("3", "4", 1))
    with RunFolder.create(run, CONFIG, resume=True) as folder:
        folder.truncate_logs(offsets, digests)
    assert f"{path} is not what this run wrote" in caplog.text


def flip(path: Path, other: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def delete(path: Path, other: Path) -> None:
    path.unlink()


def swap(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


def lengthen(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


FILES = ("student.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


@pytest.mark.parametrize("damage", [flip, cut, delete, swap, lengthen, empty])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_named_and_the_older_one_is_used(tmp_path, caplog, name, damage):
    """The corruption matrix: every file of a checkpoint, damaged in every way."""
    for step in (1, 2):
        tensors = {
            group: {"w": torch.full((3,), float(step))} for group in ("student", "optimizer")
        }
        save_tensors(tmp_path, step, tensors, {"step": step, "note": "x" * 50})
    damage(tmp_path / "step-2" / name, tmp_path / "step-1" / name)
    newest = find_newest_checkpoint(tmp_path)
    if newest.step == 2:  # a byte of the manifest that says nothing about the checkpoint
        assert name == "MANIFEST.json"
        assert damage in (flip, lengthen, cut)  # cut: its last new line
        assert float(newest.load()[0]["student"]["w"][0]) == 2
        return
    assert newest.step == 1
    assert "Skipping broken checkpoint" in caplog.text
    assert float(newest.load()[0]["student"]["w"][0]) == 1


def test_a_run_folder_that_was_moved_or_copied_goes_on(run, tmp_path):
    moved = tmp_path / "a folder é" / "run2"
    moved.parent.mkdir()
    shutil.copytree(run, moved)
    with RunFolder.create(moved, CONFIG, resume=True) as folder:
        assert not folder.fresh
    assert json.loads((moved / "config.json").read_text()) == json.loads(
        (run / "config.json").read_text()
    )
