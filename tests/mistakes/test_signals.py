"""Signals at any command, clocks, paths, two processes, a full disk: nothing is half-written."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opd.data import prompts
from opd.run import disk
from opd.run.folder import RunFolder
from support.mistakes import make_workspace, snapshot, type_command
from support.run_folders import write_run
from support.runs import digest

# What each command does while it is interrupted; the module that does it.
WORK = {
    ("train", "run.yaml"): "opd.setup.session.open_models",
    ("coldstart", "run.yaml", "coldstart={}"): "opd.setup.session.open_models",
    ("check", "run.yaml"): "opd.commands.check.candidates.open_models",
    ("verify", "run.yaml"): "opd.commands.verify.open_models",
    ("eval", "run.yaml"): "opd.setup.models.open_for_evaluation",
    ("select", "run.yaml", "select={output: x.jsonl}"): "opd.commands.select.run.open_models",
    ("serve-teacher", "run.yaml", "--port", "0"): "opd.commands.serve_teacher._load",
    ("report", "done"): "opd.run.disk.write_output",
    ("compare", "done", "other", "--out", "x.html"): "opd.run.disk.write_output",
    ("export", "done"): "opd.commands.export._reload",
    ("init", "new.yaml"): "opd.run.disk.write_output",
}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)
    write_run(tmp_path / "done")
    write_run(tmp_path / "other", seed=1)
    return tmp_path


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("words", WORK, ids=lambda words: words[0])
def test_ctrl_c_ends_a_command_with_130_and_leaves_nothing(workspace, monkeypatch, words):
    for operation in ("write", "fsync", "rename"):  # in the middle of any writing
        monkeypatch.setattr(disk.FileOps, operation, interrupt, raising=True)
    name = WORK[words]
    if not name.startswith(("opd.run.disk", "opd.commands.export")):
        monkeypatch.setattr(name, interrupt)
    outcome = type_command(workspace, *words)
    assert not outcome.has_traceback, outcome.text
    assert outcome.code in (2, 130), outcome.text  # 2: refused before it began to write
    assert not [p for p in outcome.changed if ".tmp" in p]
    if words[0] != "export":
        assert outcome.code == 130, outcome.text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", [("train", "run.yaml", "train.steps=500"), ("check", "run.yaml")])
def test_a_signal_at_any_moment_leaves_no_temporary_file(workspace, words, number):
    before = snapshot(workspace)
    for wait in (1.0, 3.0, 6.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "opd", *words],
            cwd=workspace,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        time.sleep(wait)
        process.send_signal(number)
        text, _ = process.communicate(timeout=120)
        left = [p for p in snapshot(workspace) if p not in before and ".tmp-" in p]
        assert left == [], text
        if "Loading" in text:  # before that Python itself starts
            assert "Traceback" not in text
        shutil.rmtree(workspace / "run", ignore_errors=True)


def test_a_chat_template_without_an_end_is_a_message(workspace, monkeypatch):
    monkeypatch.setattr(prompts, "RENDER_SECONDS", 0.2)
    loop = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    outcome = type_command(
        workspace, "train", "run.yaml", f"prompts.chat={{chat_template: '{loop}'}}"
    )
    assert outcome.code == 2
    assert "does not end" in outcome.text


@pytest.mark.slow
def test_a_clock_that_goes_back_changes_no_number(tmp_path, monkeypatch):
    """Times are for reading: a run whose clock leaps has the bits of one whose clock does not."""
    weights = {}
    for name in ("straight", "leaping"):
        folder = tmp_path / name
        folder.mkdir()
        make_workspace(folder, train={"steps": 2}, output={"save_every": 1}, eval=[])
        if name == "leaping":
            ticks = iter(range(10**9, 0, -3600))
            monkeypatch.setattr(time, "time", lambda ticks=ticks: float(next(ticks)))
        outcome = type_command(folder, "train", "run.yaml", "--quiet")
        assert outcome.code == 0, outcome.text
        weights[name] = digest(folder / "run")
    assert weights["straight"] == weights["leaping"]


def test_paths_with_spaces_and_letters_of_any_language(tmp_path):
    folder = tmp_path / "mein Lauf é 模型"
    folder.mkdir()
    make_workspace(folder, train={"steps": 1}, eval=[{"path": "zurück gehalten.jsonl", "n": 1}])
    (folder / "held.jsonl").rename(folder / "zurück gehalten.jsonl")
    (folder / "train.jsonl").rename(folder / "прим еры.jsonl")
    words = ("prompts.path='прим еры.jsonl'", "eval.0.name=held", "output.dir='été/lauf-1'")
    outcome = type_command(folder, "train", "run.yaml", *words, "--quiet")
    assert outcome.code == 0, outcome.text
    assert type_command(folder, "report", "été/lauf-1").code == 0
    outcome = type_command(folder, "export", "été/lauf-1", "--out", "le modèle")
    assert outcome.code == 0, outcome.text


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    make_workspace(tmp_path, eval=[], train={"steps": 1})
    with RunFolder.create(tmp_path / "run", {"x": 1}):
        outcome = type_command(tmp_path, "train", "run.yaml", "--overwrite", "--quiet")
    assert outcome.code == 2
    assert str(os.getpid()) in outcome.text or "process" in outcome.text


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full_is_a_message_and_the_run_goes_on(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        make_workspace(tmp_path, eval=[], train={"steps": 3}, output={"dir": "small/run"})
        outcome = type_command(tmp_path, "train", "run.yaml", "--quiet")
        assert outcome.code == 2
        assert not outcome.has_traceback
        assert "space" in outcome.text.lower()
        assert not Path(small / "run").exists()
        # Past the check at the start: somebody else fills the disk meanwhile.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(disk.FileOps, "free", lambda self, path: 2**40)
            outcome = type_command(tmp_path, "train", "run.yaml", "--quiet")
        assert outcome.code == 2, outcome.text
        assert not outcome.has_traceback
        assert "Free some space" in outcome.text or "full" in outcome.text.lower()
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        outcome = type_command(tmp_path, "train", "run.yaml", "--quiet", "--resume")
        assert outcome.code == 0, outcome.text
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)
