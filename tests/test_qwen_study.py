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
MODULES = ("tasks", "prepare", "teachers", "imitation", "study_page", "study", "held_out")


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
    accuracies["weaker"] = {"4": 0.6, "6": 0.65}
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


@pytest.mark.parametrize(
    ("rewards", "teacher", "cells"),
    [
        ([0, 0, 0, 0.5, 0.75, 0.75, 0.75], 1.0, "6 | 60 | 1.0"),  # steps 3 to 6: a mean of .5
        ([0, 0, 0, 0.5, 0.5, 0.5, 0.25], 1.0, "- | - | -"),
        ([0.5] * 7, 0.05, "- | - | -"),  # no gap to speak of
    ],
)
def test_half_of_the_gap_is_reached_by_four_steps_together(
    study, tmp_path, rewards, teacher, cells
):
    run = tmp_path / "small-0.0001-0"
    run.mkdir()
    sets = {"heldout": {"before": {"value": 0.0}, "teacher": {"value": teacher}}}
    (run / "summary.json").write_text(json.dumps({"sets": sets}))
    lines = [
        {"step": step, "rollout/reward": reward, "train/tokens": 10}
        for step, reward in enumerate(rewards, start=1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    times = [{"step": step, "time/step_s": 10} for step in range(1, len(rewards) + 1)]
    times = [{"step": 0, "time/step_s": 500}, *times]  # of a cold start
    (run / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    half_row = sys.modules["study_page"].half_row
    assert half_row("(c)", run) == f"| (c), 0.0001 | 0 | {cells} |\n"


def test_held_out_answers_are_kept_and_compared_problem_by_problem(study, tmp_path, monkeypatch):
    held_out = importlib.import_module("held_out")
    study_folder = tmp_path / "study"
    for model in ("0.5b", "large-16", "small-96"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_text("{}")
    for arm, teacher in (("fine-tuned", "large-16"), ("small", "small-96")):
        run = study_folder / f"{arm}-0.0001-0"
        run.mkdir(parents=True)
        (run / "summary.json").write_text("{}")
        models = {"student": {"model": str(tmp_path / "0.5b")}}
        models["teacher"] = {"model": str(tmp_path / teacher)}
        run.with_name(f"{run.name}.yaml").write_text(json.dumps(models))
    asked = []

    def answer(model, seed, tokens, base):
        asked.append(model)
        right = {"0.5b": 0, "large-16": 20, "small-96": 18}.get(model.name)
        right = (10 if "small" in str(model) else 8) if right is None else right
        return [1] * right + [0] * (20 - right)

    monkeypatch.setattr(held_out, "answer", answer)
    held_out.measure(tmp_path)
    assert len(asked) == 3 * 2 + 2
    held_out.measure(tmp_path)
    assert len(asked) == 8, "once each"
    assert "| large-16 | 100.0%" in held_out.teacher_rows(tmp_path)
    (of_large, of_small) = held_out.result_rows(tmp_path).splitlines()[2:]
    assert of_large.startswith("| (b) 1.5B, fine-tuned, 0.0001 | 0 | 0.0%")
    assert "| 40.0% (18.6 to 64.6) | 100.0%" in of_large
    assert "| +50.0 (" in of_small
    (compared,) = held_out.compared_rows(tmp_path).splitlines()[2:]
    assert compared.startswith("| small | fine-tuned | +10.0 (")
    assert compared.endswith("| - | - |")


def test_a_rate_with_a_hyphen_is_read_from_a_folder_s_name(study):
    read = sys.modules["study_page"].rate_and_seed
    for lr, seed in ((3e-5, 0), (1e-4, 1), (0.001, 10)):
        run = study.run_folder("working-both", seed, lr, Path("base"))
        assert read(run) == (f"{lr:g}", str(seed))
