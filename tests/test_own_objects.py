"""Samplers, trackers and alarm rules of the user's own: objects, dotted paths, entry points."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import opd
from opd.alarms import Evidence, Rule, rules_of
from opd.config import Alarms, python_objects
from opd.demo.run_config import PAIR, PROMPTS
from opd.run.trackers import Trackers
from opd.samplers.decoding import Decoding
from opd.setup.own_sampler import CheckedSampler, own_sampler
from opd.types import Prompt, Rollout

CODE = """
import json
from opd.alarms import Evidence, Rule
from opd.types import Rollout

def make_sampler(*, model, tokenizer, stop, max_new_tokens, temperature, top_p):
    class Constant:
        def sync(self, version): pass
        def sample(self, prompts, *, n, key, limit=None):
            ids = [*tokenizer.convert_tokens_to_ids(["ANS", "1"]), min(stop)]
            return [Rollout.of_ids(p, ids, finish="stop") for p in prompts for _ in range(n)]
    return Constant()

class Tracker:
    def __init__(self, folder, config):
        self.file = folder / "own.jsonl"
    def log(self, step, values):
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, "loss": values.get("train/loss")}) + "\\n")
    def log_results(self, results):
        with self.file.open("a") as file:
            file.write(json.dumps({"report": results.report.name}) + "\\n")
    def close(self): pass

def short(history, threshold):
    lengths = history.values("rollout/length")
    if not lengths or lengths[-1] >= threshold:
        return None
    return Evidence({"length": lengths[-1]})

RULE = Rule(name="short", message="Answers are short.", remedy="None.", threshold=4.0,
            threshold_meaning="tokens", condition=short)
"""
SETTINGS = {
    "rollout": {"python": "my_code:make_sampler", "n": 2, "max_new_tokens": 8},
    "alarms": {"python": ["my_code:RULE"]},
    "train": {"steps": 3, "prompts_per_step": 4},
    "optim": {"lr": 1e-4},
}


@pytest.fixture
def rows():
    lines = (PROMPTS / "train.jsonl").read_text("utf-8").splitlines()[:8]
    return [json.loads(line) for line in lines]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_run_with_sampler_tracker_and_alarm_by_dotted_path(tmp_path, rows, monkeypatch):
    (tmp_path / "my_code.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    run = opd.Run(
        PAIR / "student",
        PAIR / "teacher",
        rows,
        output={"dir": folder, "trackers": ["python:my_code:Tracker"]},
        **SETTINGS,
    )
    run.train(style="quiet")
    metrics = [row for row in lines(folder / "metrics.jsonl") if "rollout/length" in row]
    assert [row["rollout/length"] for row in metrics] == [3.0] * 3
    # The log-probs are the student's own: what it samples with is what it trains.
    assert metrics[0]["drift/ess"] == pytest.approx(1.0, abs=1e-4)
    own = lines(folder / "own.jsonl")
    assert [row["loss"] for row in own if row.get("loss") is not None] == pytest.approx(
        [row["train/loss"] for row in metrics]
    )
    assert own[-1] == {"report": "report.html"}
    (alarm,) = [row for row in lines(folder / "alarms.jsonl") if row["name"] == "short"]
    assert alarm["evidence"] == {"length": 3.0}
    with pytest.raises(opd.UserError, match=r"names Python code to import: rollout\.python"):
        opd.load(folder / "config.json")
    trusted = ["rollout.python=my_code:make_sampler", "alarms.python=[my_code:RULE]"]
    with pytest.raises(opd.UserError, match=r"output\.trackers=\[python:my_code:Tracker\]"):
        opd.load(folder / "config.json", trusted)
    cfg = opd.load(folder / "config.json", [*trusted, "output.trackers=[python:my_code:Tracker]"])
    assert cfg.alarms.python == ["my_code:RULE"]
    assert cfg.output.trackers == ["python:my_code:Tracker"]


class Fixed:
    """A sampler whose completions are given."""

    def __init__(self, ids, finish="stop", count=None, logp=None):
        self.ids, self.finish, self.count, self.logp = np.array(ids), finish, count, logp

    def sync(self, version):
        self.version = version

    def sample(self, prompts, *, n, key, limit=None):
        rollouts = [
            Rollout.of_ids(p, self.ids, finish=self.finish) for p in prompts for _ in range(n)
        ]
        if self.logp is not None:
            rollouts = [replace(r, logp=np.array(self.logp)) for r in rollouts]
        return rollouts[: self.count]


STOP, PROMPTS_ASKED = 2, [Prompt(index, (1, 3), "") for index in (4, 7)]


def checked(sampler):
    lm = SimpleNamespace(vocab=20)
    made = CheckedSampler(sampler, "mine:make", Decoding(8), lm, frozenset({STOP}), None, 0)
    return made.sample(PROMPTS_ASKED, n=2, key=(0,), limit=4)


def test_what_a_sampler_returns_gets_the_types_of_the_contract():
    rollouts = checked(Fixed([5, 6, STOP], logp=[-0.5, -1.0, -0.25]))
    assert [r.prompt.index for r in rollouts] == [4, 4, 7, 7]
    assert rollouts[0].ids.dtype == np.int32
    assert rollouts[0].logp.tolist() == [-0.5, -1.0, -0.25]


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Fixed([5], "length", count=3), "returned 3 rollouts for 2 prompts, 2 of each"),
        (Fixed([]), "a row of 1 to 4 whole numbers"),
        (Fixed([5] * 5, "length"), "a row of 1 to 4 whole numbers"),
        (Fixed([5, 20], "length"), "token 20; the student has tokens 0 to 19"),
        (Fixed([5, -1], "length"), "token -1"),
        (Fixed([5], "stop"), "finish='stop' of a completion whose last token is 5"),
        (Fixed([5, STOP], "length"), "finish='length' of a completion"),
        (Fixed([STOP, 5], "length"), "tokens after one that ends a completion"),
        (Fixed([5, STOP], logp=[0.5, -1.0]), "finite, at most 0"),
        (Fixed([5, STOP], logp=[-1.0]), "logp of shape"),
    ],
)
def test_a_sampler_that_breaks_its_contract_is_refused(sampler, message):
    with pytest.raises(opd.UserError, match=message):
        checked(sampler)


def test_what_is_no_sampler_is_refused():
    pair = SimpleNamespace(student=SimpleNamespace(model=None), tokenizer=None, stop=frozenset())
    for value, message in ((lambda **_: object(), "without sample, sync"), (3, "cannot be called")):
        name = python_objects.remember(value)
        with pytest.raises(opd.UserError, match=message):
            own_sampler(name, pair, Decoding(8), None, None)


def test_what_cannot_be_imported_is_refused_together_before_models_are_read(tmp_path, rows):
    settings = {
        "rollout": {"python": "nobody:make"},
        "alarms": {"python": ["nothing"]},
    }
    output = {"dir": tmp_path / "run", "trackers": ["python:json:nothing"]}
    run = opd.Run("no-student", "no-teacher", rows, output=output, **settings)
    with pytest.raises(opd.UserError) as refused:
        run.train(style="quiet")
    for part in (
        "rollout.python=nobody:make cannot be imported",
        "alarms.python=nothing is neither pkg.mod:object nor an entry point of opd.alarms",
        "output.trackers=json:nothing cannot be imported",
    ):
        assert part in str(refused.value)
    assert not (tmp_path / "run").exists()


RULE = Rule(
    name="own",
    message="It holds.",
    remedy="None.",
    threshold=1.0,
    threshold_meaning="none",
    condition=lambda history, threshold: Evidence(),
)


def test_rules_come_from_objects_lists_and_entry_points(monkeypatch):
    point = EntryPoint("mine", f"{__name__}:RULE", "opd.alarms")
    monkeypatch.setattr(python_objects, "entry_points", lambda group: [point])
    assert rules_of(Alarms(python=["mine"]))[-1].name == "own"
    given = python_objects.remember([RULE])
    assert rules_of(Alarms(python=[given]))[-1] is RULE
    with pytest.raises(opd.UserError, match="there is a rule own already"):
        rules_of(Alarms(python=[given, given]))
    with pytest.raises(opd.UserError, match="gives a dict"):
        rules_of(Alarms(python=[python_objects.remember({})]))


def test_a_tracker_must_follow_its_contract(tmp_path):
    name = "python:" + python_objects.remember({})
    with pytest.raises(opd.UserError, match="gives a dict without log, log_results, close"):
        Trackers([name], tmp_path, {})


def test_code_and_another_way_to_sample_exclude_each_other(tmp_path, rows):
    with pytest.raises(opd.UserError, match=r"rollout\.python samples with code of your own"):
        opd.Run("s", "t", rows, output=tmp_path, rollout={"python": "a:b", "path": "c"})
