"""The trial of the alarms: what became of a run, and what its alarms are worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opd import config
from opd.config import Alarms
from opd.demo.run_config import demo_config
from opd.run.jsonl import encode_line
from opd_lab.alarm_trial import first_visible_step, judge, judge_all, render_runs


def finished(folder: Path, before: float, after: float, teacher: float, *, falls: bool) -> Path:
    """A run folder with the files that are read: accuracy of training rollouts falls or rises."""
    folder.mkdir()
    cfg = config.dump(config.parse(demo_config(folder / "out"), ["train.steps=40"]))
    (folder / "config.json").write_text(json.dumps(cfg))
    numbers = {"before": before, "after": after, "teacher": teacher}
    sets = {"task": {who: {"value": value} for who, value in numbers.items()}}
    (folder / "summary.json").write_text(json.dumps({"sets": sets}))
    rows = []
    for step in range(41):
        if step % 20 == 0:
            value = before + (after - before) * step / 40
            ends = {"accuracy": value, "accuracy_low": value - 0.04, "accuracy_high": value + 0.04}
            rows.append({"step": step} | {f"eval/task/{n}": v for n, v in ends.items()})
        reward = 0.8 - 0.01 * step if falls else 0.2 + 0.01 * step
        if step:
            rows.append({"step": step, "rollout/reward": reward, "diag/reverse_kl": 1 / step})
    (folder / "metrics.jsonl").write_bytes(b"".join(map(encode_line, rows)))
    return folder


@pytest.mark.parametrize(
    ("numbers", "outcome"),
    [
        ((0.8, 0.3, 0.2), "wrong"),
        ((0.2, 0.25, 0.9), "wrong"),
        ((0.2, 0.8, 0.9), "healthy"),
        ((0.2, 0.45, 0.9), "between"),
        ((0.2, 0.2, 0.22), "no gap"),
    ],
)
def test_what_became_of_a_run(tmp_path, numbers, outcome):
    assert judge(finished(tmp_path / "run", *numbers, falls=False), Alarms()).outcome == outcome


def test_recall_false_alarms_and_head_start(tmp_path):
    finished(tmp_path / "seen", 0.8, 0.3, 0.2, falls=True)
    finished(tmp_path / "missed", 0.2, 0.25, 0.9, falls=False)
    finished(tmp_path / "quiet", 0.2, 0.8, 0.9, falls=False)
    finished(tmp_path / "false", 0.2, 0.8, 0.9, falls=True)
    (tmp_path / "unfinished").mkdir()
    runs = judge_all([tmp_path], Alarms())
    assert len(runs) == 4
    lines = render_runs(runs).splitlines()
    assert "| wrong | 2 | 1: 0.50" in lines[2]
    assert "| healthy | 2 | 1: 0.50" in lines[3]
    (seen,) = [run for run in runs if run.path.name == "seen"]
    assert (seen.first_alarm, seen.visible_at) == (11, 20)
    assert any("9 steps earlier" in line for line in lines)
    start = lines.index("| misjudged | pair | accuracy | of the teacher | alarms |") + 2
    assert [line.split(" | ")[0] for line in lines[start:]] == ["| false alarm", "| missed"]


def test_a_gain_that_never_came_shows_at_the_end():
    rows = [{"step": s, "eval/a/accuracy_low": 0.2, "eval/a/accuracy_high": 0.3} for s in (0, 20)]
    assert first_visible_step(rows, 40) == 40
