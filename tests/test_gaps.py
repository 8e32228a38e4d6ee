"""Runs that go on under other circumstances than they began: upgrades, new sets, long replays."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import opd
from opd import config
from opd.errors import UserError
from opd.reports.terminal import render_text
from opd.reports.training_summary import training_summary
from opd.run.checkpoint import find_newest_checkpoint
from opd.run.console import Console
from opd.run.folder import RunFolder
from opd.run.jsonl import read_jsonl
from opd.setup.disk_estimate import bytes_needed, step_bytes
from opd.setup.pair import load_pair
from opd.setup.session import build
from support.runs import run_config, run_to_end


def rewrite(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_key_that_came_with_a_later_version_is_its_default_on_resume(tmp_path, caplog):
    data = run_config(tmp_path / "run", steps=2)
    data["eval"] = []
    run_to_end(data)

    def forget(stored):
        del stored["student"]["shard"], stored["optim"]["warmup"], stored["horizon"]

    rewrite(tmp_path / "run" / "config.json", forget)
    data["train"]["steps"] = 3
    run_to_end(data, resume=True)
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 3
    rewrite(tmp_path / "run" / "config.json", forget)
    data["optim"]["warmup"] = 3
    with pytest.raises(UserError, match=r"optim\.warmup: 0 -> 3"):
        run_to_end(data, resume=True)


def test_a_removed_key_at_its_default_does_not_stand_in_the_way_of_a_resume(tmp_path):
    data = run_config(tmp_path / "run", steps=2)
    data["eval"] = []
    run_to_end(data)
    config_file = tmp_path / "run" / "config.json"
    rewrite(config_file, lambda stored: stored["loss"].update(normalize=False, weights="student_p"))
    data["train"]["steps"] = 3
    run_to_end(data, resume=True)
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 3
    rewrite(config_file, lambda stored: stored["loss"].update(weights="teacher_p"))
    with pytest.raises(UserError, match=r"loss\.weights was removed in 0\.2.*student's prob"):
        run_to_end(data, resume=True)


def test_rollouts_of_an_interrupted_step_are_used_after_an_upgrade(tmp_path):
    data = run_config(tmp_path / "run", steps=2)
    key = {}
    for gone in (False, True):
        resolved = config.dump(config.parse(data))
        if gone:
            del resolved["loss"]["beta"], resolved["horizon"]
        with RunFolder.create(tmp_path / str(gone), resolved) as made:
            key[gone] = made.rollout_key(1, 0)
    assert key[False] == key[True]


def test_a_replayed_rollout_longer_than_the_run_allows_is_refused_with_its_length(tmp_path):
    data = run_config(tmp_path / "first", steps=1)
    data["eval"] = []
    run_to_end(data)
    replay = run_config(tmp_path / "second", steps=1)
    replay["eval"] = []
    replay["rollout"] |= {
        "path": str(tmp_path / "first" / "rollouts"),
        "max_new_tokens": 2,
    }
    with pytest.raises(UserError, match=r"rollout\.max_new_tokens=2.*has \d+ tokens"):
        run_to_end(replay)
    assert not (tmp_path / "second").exists()


def test_a_set_added_on_resume_has_no_before_and_the_summary_says_so(tmp_path):
    data = run_config(tmp_path / "run", steps=2)
    (first, *_) = data["eval"]
    data["eval"] = [first]
    run_to_end(data)
    data["train"]["steps"] = 4
    data["eval"] = [first, first | {"name": "late"}]
    summary = run_to_end(data, resume=True)
    late = summary["sets"]["late"]
    assert "before" not in late
    assert "change" not in late
    assert "after" in late
    assert "note" not in summary["sets"][config.parse(data).eval[0].label]
    assert late["note"] in " ".join(render_text(training_summary(summary)))


def test_the_python_call_raises_on_an_interrupt_after_saving(tmp_path):
    data = run_config(tmp_path / "run", steps=200)
    data["eval"], data["output"]["save_every"] = [], 1000
    log = tmp_path / "run" / "metrics.jsonl"

    def interrupt():
        until = time.monotonic() + 120
        while not (log.exists() and log.stat().st_size) and time.monotonic() < until:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        opd.train(opd.parse(data), style="quiet")
    watcher.join()
    assert find_newest_checkpoint(tmp_path / "run" / "checkpoints") is not None
    assert signal.getsignal(signal.SIGINT) is before


def test_the_python_call_works_off_the_main_thread(tmp_path):
    data = run_config(tmp_path / "run", steps=1)
    data["eval"] = []
    found = []
    worker = threading.Thread(
        target=lambda: found.append(opd.train(opd.parse(data), style="quiet"))
    )
    worker.start()
    worker.join()
    assert found
    assert found[0]["steps"] == 1


def test_the_disk_check_knows_the_files_of_the_steps(tmp_path):
    data = run_config(tmp_path / "run", steps=2)
    data["eval"] = []
    data["train"]["prompts_per_step"] = 8
    cfg = config.parse(data)
    run_to_end(data)
    written = max(p.stat().st_size for p in (tmp_path / "run" / "rollouts").glob("*.parquet"))
    pair = load_pair(cfg)
    assert step_bytes(cfg, pair.student, pair.teacher) > written
    less = config.parse(data | {"output": data["output"] | {"save_every": 1}})
    few, many = (bytes_needed(c, pair.student, pair.teacher) for c in (less, cfg))
    assert many - few == step_bytes(cfg, pair.student, pair.teacher)


def test_a_run_that_cannot_hold_one_step_is_refused_before_it_begins(tmp_path):
    data = run_config(tmp_path / "run", steps=2)
    data["train"]["prompts_per_step"] = 10**9
    with pytest.raises(UserError, match="Not enough disk space"):
        build(config.parse(data), resume=False, overwrite=False, console=Console("quiet"))
    assert not (tmp_path / "run").exists()
