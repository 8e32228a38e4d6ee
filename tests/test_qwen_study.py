"""The study on Qwen2.5-Coder: what its arms configure, their order of commands, and its tables."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from opd import config

FOLDER = Path(__file__).parents[1] / "examples" / "qwen"
MODULES = ("tasks", "prepare", "teachers", "imitation", "study_page", "study")


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("study")
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def measured(study, monkeypatch, tmp_path):
    """A folder in which every teacher has been made, and the rate of (b) has been chosen."""
    accuracies = {"large": {"8": 0.65, "32": 0.8}, "small": {"32": 0.5, "96": 0.66}}
    accuracies["working"] = {"4": 0.2, "8": 0.7, "24": 0.95}
    for name, found in accuracies.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    monkeypatch.setattr(study, "chosen_rate", lambda name, base: 3e-4)
    return tmp_path


def test_working_is_right_and_ends_with_the_answer(study):
    teachers = sys.modules["teachers"]
    for row in sys.modules["tasks"].rows("addition", "train", 20, 100):
        lines = teachers.working_of(row["problem"]).splitlines()
        for line in lines:
            a, b, total = map(int, re.fullmatch(r"(\d+) \+ (\d+) = (\d+)", line).groups())
            assert a + b == total
        assert lines[1].endswith(f"= {row['answer']}")
        assert lines[1].startswith(lines[0].rpartition("= ")[2])


def test_teachers_are_chosen_by_the_nearest_accuracy(study, measured):
    names = {name: study.teacher_of(arm, measured).name for name, arm in study.ARMS.items()}
    assert names["fine-tuned"] == "large-8"
    assert names["small"] == "small-96"
    assert names["working"] == names["working-both"] == "working-8"
    assert (names["back"], names["as-it-is"]) == ("0.5b", "1.5b")


def test_every_arm_is_a_configuration_and_no_problem_is_in_two_sets(study, measured):
    for name in study.ARMS:
        cfg = config.parse(study.settings(name, 1, 3e-4, measured), [])
        assert cfg.train.seed == 1
        assert (cfg.coldstart is not None) == (name in ("working-cold", "working-both"))
    files = study.write_data(1, measured)
    problems = {
        split: {json.loads(line)["problem"] for line in path.read_text().splitlines()}
        for split, path in files.items()
    }
    assert not problems["train"] & (problems["heldout"] | problems["validation"])
    assert study.settings("back", 1, 3e-4, measured)["student"]["model"].endswith(
        "fine-tuned-0.0003-1/final"
    )


def test_the_verdict_is_asked_before_training_and_once(study, measured, monkeypatch):
    called = []

    def opd(*arguments):
        called.append(arguments[0])
        if arguments[0] == "select":
            Path(study.run_folder("working-both", 0, 3e-4, measured)).parent.mkdir(exist_ok=True)
            kept = json.loads(json.dumps(study.settings("working-both", 0, 3e-4, measured)))
            Path(kept["select"]["output"]).write_text("")
        if arguments[0] == "check":
            return json.dumps({"verdict": "go", "reasons": []}) + "\n"
        return ""

    monkeypatch.setattr(study, "opd", opd)
    study.train("working-both", 0, 3e-4, measured)
    study.train("working-both", 0, 3e-4, measured)
    assert called == ["select", "check", "train", "train"]


def test_tables_show_what_the_folders_hold(study, tmp_path):
    page = sys.modules["study_page"].page
    run = tmp_path / "study" / "fine-tuned-0.0003-1"
    run.mkdir(parents=True)
    interval = {"value": 0.25, "low": 0.2, "high": 0.3, "n": 300}
    sets = {
        name: dict.fromkeys(("before", "after", "teacher", "change", "gap_recovery"), interval)
        for name in ("heldout", "offtask", "validation")
    }
    (run / "summary.json").write_text(json.dumps({"sets": sets}))
    evidence = "predicted change +6.4 points (-5.0 to +30.1) (90 % interval)"
    verdict = {"verdict": "not known", "reasons": [{"text": "", "evidence": evidence}]}
    run.with_name(f"{run.name}.verdict.json").write_text(json.dumps(verdict))
    lines = [{"train/loss": 1, "diag/reverse_kl": kl} for kl in (1.0, 0.5, 0.25)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "timings.jsonl").write_text(json.dumps({"step": 1, "time/step_s": 90}) + "\n")
    measured = {name: [0.5, 0.4, 0.6] for name in ("validation", "heldout", "offtask")}
    record = {"tokens": 1900, "teacher": "large-32", "rates": {"0.0003": measured}}
    (tmp_path / "study" / "imitation-0.json").write_text(json.dumps(record))
    text = page({"fine-tuned": "(b)", "small": "(c)"}, "(f)", tmp_path)
    assert "| (b) | 1 | 0.0003 | not known | +6.4 (-5.0 to +30.1) | 25.0% (20.0 to 30.0)" in text
    assert "| 1.5 |" in text
    assert "(c)" not in text
    assert "| (f) | 0 | 0.0003 | 50.0% (40.0 to 60.0)" in text
    assert "1.000 -> 0.250" in text
