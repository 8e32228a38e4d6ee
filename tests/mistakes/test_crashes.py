"""What a machine does to a command: a message and exit code 2, the traceback in the run folder."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from opd.run.crash import describe
from opd.run.disk import FileOps
from opd.training import loop
from support.mistakes import make_workspace, type_command, type_in_a_process

TRAIN = ("train", "run.yaml", "--quiet")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path, eval=[])
    return tmp_path


def failing(error: Exception, after: int):
    """An operation that works `after` times and then raises."""
    done = 0

    def act(original):
        def call(self, *args, **kwargs):
            nonlocal done
            done += 1
            if done > after:
                raise error
            return original(self, *args, **kwargs)

        return call

    return act


def raises(error: Exception):
    def call(*args, **kwargs):
        raise error

    return call


@pytest.mark.parametrize("after", [0, 8, 16])
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"),
        (errno.EIO, "The disk fails"),
    ],
)
def test_a_disk_that_fails_is_a_message(workspace, monkeypatch, code, said, after):
    error = OSError(code, "the disk says no", "run/metrics.jsonl")
    monkeypatch.setattr(FileOps, "write", failing(error, after)(FileOps.write))
    outcome = type_command(workspace, *TRAIN)
    assert outcome.code == 2, outcome.text
    assert not outcome.has_traceback
    assert said in outcome.text or "Disk full" in outcome.text


def test_memory_that_the_driver_lacks_is_no_failure_of_the_gpu():
    said = describe(RuntimeError("CUDA error: out of memory"))
    assert said is not None
    assert "train.tokens_per_microbatch" in said
    assert "The GPU failed" not in said


def test_exhausted_memory_is_a_message_and_a_traceback_in_the_run_folder(workspace, monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    monkeypatch.setattr(loop, "update", raises(error))
    outcome = type_command(workspace, *TRAIN)
    assert outcome.code == 2, outcome.text
    assert not outcome.has_traceback
    assert "train.tokens_per_microbatch" in outcome.text
    assert "run/traceback.txt" in outcome.text
    assert "OutOfMemoryError" in Path("run/traceback.txt").read_text()
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    assert type_command(workspace, *TRAIN, "--resume").code == 0  # and the run goes on


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
        "[127.0.0.1]:44676. This is typically caused by a remote worker crashing.",
        "NCCL error: remote process exited or there was a network error, NCCL version 2.27.3",
    ],
)
def test_a_process_whose_companion_has_ended_has_no_bug(workspace, monkeypatch, text):
    """A full disk at rank zero was called a bug of opd by the others."""
    monkeypatch.setattr(loop, "update", raises(RuntimeError(text)))
    outcome = type_command(workspace, *TRAIN)
    assert outcome.code == 2, outcome.text
    assert "Another process of this run has ended" in outcome.text
    assert "bug" not in outcome.text


def test_a_bug_says_where_its_traceback_is(workspace, monkeypatch):
    monkeypatch.setattr(loop, "update", raises(KeyError("surprise")))
    outcome = type_command(workspace, *TRAIN)
    assert outcome.code == 1
    assert not outcome.has_traceback
    assert "This is a bug of opd" in outcome.text
    assert "surprise" in Path("run/traceback.txt").read_text()


def test_text_of_a_server_is_printed_without_control_characters(workspace, capsys):
    from opd.cli import fail

    with pytest.raises(SystemExit):
        fail("it said \x1b[31mred\x1b[0m \x07\u202e!", 2)
    assert capsys.readouterr().err == "opd: it said \\x1b[31mred\\x1b[0m \\x07\\u202e!\n"


def test_init_where_nothing_can_be_written_is_a_message(workspace):
    Path("locked").mkdir(mode=0o500)
    for name in ("train.jsonl/x.yaml", "/proc/x.yaml"):
        outcome = type_command(workspace, "init", name)
        assert (outcome.code, outcome.has_traceback) == (2, False), outcome.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("trian", "run.yaml"),
        ("train", "nothing.yaml"),
        ("train", "run.yaml", "train.stpes=3"),
        ("train", "run.yaml", "prompts.path=no.jsonl", "teacher.device=cuda"),
        ("check", "run.yaml", "--apply", "train.jsonl"),
        ("serve-teacher", "run.yaml", "--port", "99999"),
    ],
)
def test_a_real_process_says_the_same(workspace, words):
    """The suite types in its own process; these are typed at a shell's."""
    real, typed = type_in_a_process(workspace, *words), type_command(workspace, *words)
    assert real.code == typed.code == 2
    assert real.changed == typed.changed == ()
    assert not real.has_traceback
    assert real.text.strip().splitlines()[-1] == typed.text.strip().splitlines()[-1]
