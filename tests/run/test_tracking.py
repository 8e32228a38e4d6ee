"""Trackers get the metrics and no secret, and may fail without stopping a run."""

from __future__ import annotations

import json

import pytest

from opd.errors import MissingDependency
from opd.run.trackers import Results, Trackers

# A stand-in for the wandb and trackio packages: writes what it is sent to a file.
SERVICE = """
import json, os
def note(*what):
    with open(os.environ["SENT"], "a") as file:
        file.write(json.dumps(what) + "\\n")
class Run:
    def log(self, values, step=None):
        for name, value in values.items():
            values[name] = [value.columns, value.data] if isinstance(value, Table) else value
        if "explode" in values:
            raise RuntimeError("no network for " + os.environ["FAKE_API_KEY"])
        note("log", step, values)
    def finish(self):
        note("finish")
class Table:
    def __init__(self, columns, data):
        self.columns, self.data = columns, data
def log_artifact(path, name, type):
    note("artifact", path, name, type)
def init(**options):
    if os.environ.get("REFUSE"):
        raise ConnectionError("refused")
    note("init", options)
    return Run()
"""


@pytest.fixture
def service(tmp_path, monkeypatch):
    """wandb and trackio importable; returns a function that reads what was sent."""
    import sys

    modules = tmp_path / "modules"
    modules.mkdir()
    for name in ("wandb", "trackio"):
        (modules / f"{name}.py").write_text(SERVICE)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(modules)
    monkeypatch.setenv("SENT", str(tmp_path / "sent"))
    monkeypatch.setenv("FAKE_API_KEY", "canary-in-the-environment")
    yield lambda: [json.loads(line) for line in (tmp_path / "sent").read_text().splitlines()]
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


def test_no_trackers(tmp_path):
    trackers = Trackers([], tmp_path, {})
    trackers.log(1, {"loss": 0.5})
    trackers.close()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_everything_arrives(service, tmp_path, name):
    trackers = Trackers([name], tmp_path / "my-run", {"loss": {"k": 4}})
    trackers.log(1, {"loss": 0.5, "note": "x", "none": None})
    trackers.close()
    trackers.log(2, {"loss": 0.25})
    start, logged, finish = service()
    assert start[1]["config"] == {"loss": {"k": 4}}
    assert start[1]["name"] == "my-run"
    assert logged == ["log", 1, {"loss": 0.5, "note": "x", "none": None}]
    assert finish == ["finish"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_positions_have_a_group_of_their_own_and_results_arrive(service, tmp_path, name):
    trackers = Trackers([name], tmp_path / "my run", {})
    trackers.log(1, {"diag/reverse_kl": 0.5, "diag/reverse_kl@pos0-127": 0.25, "eval/a@b/x": 1.0})
    trackers.log_results(Results(tmp_path / "report.html", ("step", "text"), [(1, "a")]))
    trackers.close()
    _, logged, table, artifact, _ = service()
    assert set(logged[2]) == {"diag/reverse_kl", "position/reverse_kl@pos0-127", "eval/a@b/x"}
    assert table[2] == {"rollouts": [["step", "text"], [[1, "a"]]]}
    assert artifact == ["artifact", str(tmp_path / "report.html"), "report-my-run", "report"]


def test_one_that_fails_is_named_once_and_dropped(service, tmp_path, caplog):
    trackers = Trackers(["wandb", "trackio"], tmp_path, {})
    trackers._sinks["wandb"].log = lambda step, values: 1 / 0
    for step in (1, 2, 3):
        trackers.log(step, {"loss": 0.5})
    trackers.close()
    assert [r.getMessage() for r in caplog.records] == [
        "Tracker wandb failed and is dropped: division by zero"
    ]
    assert [s[:2] for s in service() if s[0] == "log"] == [["log", 1], ["log", 2], ["log", 3]]


def test_one_that_does_not_start_is_dropped(service, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("REFUSE", "1")
    trackers = Trackers(["wandb"], tmp_path, {})
    trackers.log(1, {"loss": 0.5})
    trackers.close()
    assert "wandb failed and is dropped: refused" in caplog.text


def test_no_secret_is_sent_or_shown(service, tmp_path, caplog):
    config = {
        "teacher": {
            "url": "https://me:canary-password@host/v1",
            "api_key": "canary-literal",
            "api_key_env": "FAKE_API_KEY",
            "headers": ["Bearer canary-bearer-token", "X: canary-in-the-environment"],
        }
    }
    trackers = Trackers(["wandb"], tmp_path, config)
    trackers.log(1, {"note": "canary-in-the-environment"})
    trackers.log(2, {"explode": 1})
    text = json.dumps(service()) + caplog.text
    assert "canary" not in text
    assert "FAKE_API_KEY" in text
    assert "dropped" in caplog.text


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_said_at_the_start(tmp_path, name, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=rf"opd\[{name}\]"):
        Trackers([name], tmp_path, {})


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboard")
    trackers = Trackers(["tensorboard"], tmp_path, {})
    trackers.log(1, {"loss": 0.5, "note": "x", "none": None})
    trackers.close()
    assert list((tmp_path / "tensorboard").glob("events*"))
