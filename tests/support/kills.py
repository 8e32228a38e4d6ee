"""Runs that are killed with signal 9 and go on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from support.runs import run_config


def kill_and_resume(folder: Path, rng: random.Random, *, kills: int, **changes) -> None:
    """Run in a process of its own, kill it `kills` times at moments nobody chose, then finish."""
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(run_config(folder, **changes)))
    log = folder / "metrics.jsonl"
    for _ in range(kills):
        process = start_training(file, *(["--resume"] if folder.exists() else []))
        before = log.stat().st_size if log.exists() else 0
        while process.poll() is None and (not log.exists() or log.stat().st_size == before):
            time.sleep(0.002)  # still importing and loading
        time.sleep(rng.uniform(0, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert start_training(file, "--resume").wait(200) == 0


def start_training(file: Path, *flags: str) -> subprocess.Popen:
    """`opd train` in a process of its own."""
    command = [sys.executable, "-m", "opd", "train", str(file), "--quiet", *flags]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
