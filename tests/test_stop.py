"""Ctrl-C: the step is finished and saved, a second one stops at once, nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from opd.recipes.distillation import distill
from opd.run.checkpoint import find_newest_checkpoint
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
