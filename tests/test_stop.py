"""Ctrl-C: the step is finished and saved, a second one stops at once, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from threading import Event
from types import SimpleNamespace

import pytest

from opd.commands import run_session
from opd.recipes.distillation import distill
from opd.run.checkpoint import find_newest_checkpoint
from opd.run.console import Console
from support.runs import Counting, digest, open_run, run_config, run_to_end


class StopsAt(Counting):
    """A sampler that asks for a stop when it is given a version."""

    def __init__(self, inner, event, version):
        super().__init__(inner)
        self.event, self.version = event, version

    def sync(self, version):
        super().sync(version)
        if version == self.version:
            self.event.set()


def test_a_stop_saves_the_step_and_the_run_goes_on_as_if_nothing_had_been(tmp_path):
    run_to_end(run_config(tmp_path / "straight"))
    data = run_config(tmp_path / "stopped")
    session, completions = open_run(data)
    sampler = StopsAt(session.source.sampler, session.stop, 3)  # not a step that saves by itself
    with pytest.raises(KeyboardInterrupt):
        distill(replace(session, source=replace(session.source, sampler=sampler)), completions)
    session.folder.close()
    assert find_newest_checkpoint(tmp_path / "stopped" / "checkpoints").step == 3
    run_to_end(data, resume=True)
    assert digest(tmp_path / "stopped") == digest(tmp_path / "straight")


def test_a_signal_that_a_launcher_passes_on_is_not_a_second_one(monkeypatch):
    """A scheduler signals torchrun and its processes: they stopped without saving the step."""
    clock = iter([0.0, 0.1, 2.2, 0.0, 0.1])
    monkeypatch.setattr(run_session, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        stop = Event()
        run_session.stop_after_step(stop, Console("quiet"), 2)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        run_session.stop_after_step(Event(), Console("quiet"))
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # in one process nobody passes anything on
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


@pytest.mark.slow
def test_the_command_says_how_to_resume(tmp_path):
    command = [sys.executable, "-m", "opd", "demo", "--out", str(tmp_path / "run"), "--steps", "70"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (log.exists() and b"train/loss" in log.read_bytes()) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Finishing this step" in out
    assert "--resume" in out
    assert find_newest_checkpoint(tmp_path / "run" / "checkpoints") is not None


def test_what_goes_on_with_a_run_names_the_launcher(monkeypatch):
    """One process would refuse to go on with a run of several."""
    monkeypatch.setattr(sys, "argv", ["opd", "train", "my run.yaml", "--overwrite"])
    assert run_session.resume_command("train") == "opd train 'my run.yaml' --resume"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    with_torchrun = "torchrun ... -m opd train 'my run.yaml' --resume"
    assert run_session.resume_command("train") == with_torchrun
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert run_session.resume_command("train").startswith("accelerate launch ... -m opd train ")
