"""Runs in progress: what is appended is read once, and shown in narrow terminals."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from opd.cli import app
from opd.commands.export import Exported
from opd.commands.watch import METRICS, sparkline, view, watch, watch_as_json
from opd.errors import UserError
from opd.reports.formatting import plain
from opd.reports.live import Journal, LiveRun
from opd.reports.read import read_run
from support.run_folders import write_run

NAMES = frozenset(name for name, _ in METRICS)


def append(path: Path, *rows: dict) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_a_journal_gives_each_whole_line_once(tmp_path):
    file = tmp_path / "metrics.jsonl"
    journal = Journal(file)
    assert journal.read() == ([], False)
    append(file, {"step": 1, "a": 1.0})
    with file.open("a") as out:
        out.write('{"step": 2, "a":')
    assert journal.read() == ([{"step": 1, "a": 1.0}], False)
    assert journal.read() == ([], False)
    with file.open("a") as out:
        out.write(" 2.0}\n")
    assert journal.read() == ([{"step": 2, "a": 2.0}], False)
    file.write_text('{"step": 1, "a": 3.0}\n')
    assert journal.read() == ([{"step": 1, "a": 3.0}], True)


def test_a_linked_journal_is_not_read(tmp_path):
    append(tmp_path / "secret", {"step": 1})
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "secret")
    assert Journal(tmp_path / "metrics.jsonl").read() == ([], False)


def test_a_live_run_says_what_the_report_says(good):
    run = read_run(good)
    live = LiveRun(good, NAMES)
    assert live.update()
    assert not live.update()
    assert (live.done, live.planned, live.state) == (run.done, run.planned, run.state)
    for name in NAMES & run.names():
        steps, values = live.values(name)
        assert steps == run.series(name).steps.tolist()
        assert values == run.series(name).values.tolist()
    assert [a.message for a in live.alarms] == [a.message for a in run.alarms]
    assert [e.value for e in live.evals["task"]] == [e.accuracy.value for e in run.evals[0].student]
    assert live.teacher["task"].value == run.evals[0].teacher.accuracy.value


def test_what_a_resumed_run_cut_is_forgotten(make_run):
    path = make_run()
    live = LiveRun(path, NAMES)
    live.update()
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[:8]))
    assert live.update()
    assert live.done < 10


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_newest_end_and_the_scale_are_seen(good, width):
    live = LiveRun(good, NAMES)
    live.update()
    console = Console(width=width, highlight=False, force_terminal=False, record=True)
    with console.capture() as captured:
        console.print(view(live, width))
    lines = captured.get().splitlines()
    row = next(line for line in lines if line.startswith("loss"))
    bars, low, high = sparkline(live.values("train/loss")[1], 6)
    assert bars[-1] in row  # falls to its lowest
    assert row.rstrip().endswith(f"{row.split()[-3]} to {row.split()[-1]}")
    assert max(map(len, lines)) <= width
    for name, label in METRICS:  # nothing is cut: a cut number is another number
        values = live.values(name)[1]
        if values:
            row = next(line for line in lines if line.startswith(f"{label} "))
            assert row.removeprefix(label).split()[:2] == [
                plain(values[-1]).text,
                plain(values[0]).text,
            ]
    assert low < high


def test_a_run_that_has_not_begun_is_waited_for(tmp_path):
    path = tmp_path / "run"
    with (tmp_path / "out").open("w") as out:
        console = Console(file=out, force_terminal=True, width=80)
        watcher = threading.Thread(
            target=watch, args=(path,), kwargs={"interval": 0.05, "console": console}
        )
        watcher.start()
        time.sleep(0.2)
        assert watcher.is_alive()
        write_run(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").rename(path)
        watcher.join(20)
        assert not watcher.is_alive()
    text = (tmp_path / "out").read_text()
    assert "Waiting for a run in" in text
    assert "step 20/20" in text


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        watch(tmp_path / "file")
    with pytest.raises(UserError, match="no run folder"):
        watch(tmp_path / "absent", console=Console(force_terminal=False))


def test_programs_read_a_run_as_json_lines(good):
    lines = []
    watch_as_json(good, interval=0.01, say=lines.append)
    (line,) = lines  # the run is over
    state = json.loads(line)
    assert (state["step"], state["steps"], state["state"]) == (20, 20, "finished")
    run = read_run(good)
    assert state["metrics"]["train/loss"] == run.series("train/loss").values[-1]
    assert state["accuracy"]["task"]["value"] == run.evals[0].final.accuracy.value
    assert state["teacher"]["task"]["low"] == run.evals[0].teacher.accuracy.low


def test_report_prints_its_verdict_as_json(good):
    done = CliRunner().invoke(app, ["report", str(good), "--json"])
    printed = json.loads(done.stdout)
    sidecar = json.loads((good / "report.json").read_text())
    assert printed["report"] == str(good / "report.html")
    assert printed["verdict"] == sidecar["sections"]["verdict"]["parts"]


def test_export_as_json():
    exported = Exported(Path("x/export"), "weights", 7, 1e-6, 1e-4)
    assert json.loads(exported.json())["path"] == "x/export"


def test_sets_stand_in_the_order_of_the_configuration(tmp_path):
    live = LiveRun(tmp_path, NAMES)
    live.config = {"train": {}, "eval": [{"name": "zebra"}, {"path": "data/ape.jsonl"}]}
    assert sorted(["ape", "other", "zebra"], key=live._rank) == ["zebra", "ape", "other"]
