"""`opd check` as a user meets it: on the shipped pair, its reverse, several teachers, mistakes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from opd import config
from opd.cli import app
from opd.commands.check import gather, rounds, run_check
from opd.demo.run_config import PAIR
from opd.errors import UserError
from opd.run.layout import check_record
from support.runs import short_demo

STUDENT, TEACHER = str(PAIR / "student"), str(PAIR / "teacher")


def write(path, **changes):
    """The demo's run.yaml, small, with some keys changed."""
    data = short_demo(path.parent / "run")
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            data[section] = data.get(section, {}) | {name: value}
        else:
            data[section] = value
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture(autouse=True)
def little_to_measure(monkeypatch):
    monkeypatch.setattr(rounds, "MAX_PROMPTS", 32)
    monkeypatch.setattr(gather, "PARTS", ())  # of the run: tests/test_check_parts.py


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run.yaml"


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_shipped_pair_is_a_go_and_left_as_it_was(file, capsys):
    before = [contents(PAIR / name) for name in ("student", "teacher")]
    result = run_check(write(file), ())
    assert result.best.verdict == "go"
    assert len(result.student.prompts) == 32  # MAX_PROMPTS, whatever the rounds
    text = capsys.readouterr().out
    assert "Go: nothing stands against this run." in text
    assert "The teacher is more accurate than the student" in text
    for part in ("Compatibility", "By quarter", "Cost of 80 steps", "This check took"):
        assert part in text
    record = json.loads(check_record(file.parent / "run").read_text())
    assert record["verdict"] == "go"
    assert record["numbers"]["gap"]["low"] > 0.5
    assert record["plan"]["seconds"] > 0
    assert record["plan"]["steps"] == 80
    assert (file.parent / "run.checked.html").exists()
    assert not (file.parent / "run").exists()
    assert [contents(PAIR / name) for name in ("student", "teacher")] == before


def test_a_timed_step_changes_no_weight(tmp_path):
    from opd.commands.check.candidates import load_candidate
    from opd.commands.check.timing import StepTimer
    from opd.run.console import Console
    from opd.setup.prompts import load_training_prompts

    cfg = config.load(write(tmp_path / "run.yaml"))
    candidate = load_candidate(cfg, "teacher", None, tmp_path)
    student = candidate.pair.student
    before = {n: p.detach().clone() for n, p in student.parameters().items()}
    prompts = load_training_prompts(cfg, candidate.pair, Console("quiet"))
    timer = StepTimer(candidate, prompts, tmp_path)
    step = timer.step(4)
    assert step.tokens > 0
    assert step.fraction == 4 / cfg.train.prompts_per_step
    assert all(torch.equal(p, before[n]) for n, p in student.parameters().items())


def test_the_reverse_is_a_no_go_that_names_the_base_model(file, tmp_path, capsys):
    path = write(file, student={"model": TEACHER}, teacher={"model": STUDENT})
    result = run_check(path, (f"check.origin={STUDENT}",), apply=tmp_path / "advice.yaml")
    assert not (tmp_path / "advice.yaml").exists()
    assert "advice.yaml was not written" in capsys.readouterr().out
    best = result.best
    assert best.verdict == "don't"
    texts = [r.text for r in best.reasons]
    assert texts[0].startswith("The teacher is less accurate than the student")
    assert "The teacher is the student's base model again: training would undo gains" in texts
    assert CliRunner().invoke(app, ["check", str(path)]).exit_code == 1


@pytest.mark.slow
def test_several_teachers_are_ranked_on_the_same_rollouts(file, tmp_path):
    worse = tmp_path / "worse"
    shutil.copytree(PAIR / "teacher", worse)
    model = AutoModelForCausalLM.from_pretrained(worse)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    model.save_pretrained(worse)
    models = [STUDENT, str(worse), TEACHER]
    result = run_check(write(file, teacher=[{"model": m} for m in models]), ())
    assert [t.candidate.label for t in result.teachers] == ["teacher", "worse", "student"]
    assert [t.verdict for t in result.teachers[::2]] == ["go", "don't"]
    for label, teacher in (("teacher", TEACHER), ("worse", str(worse))):
        alone = run_check(write(file, teacher={"model": teacher}), ())
        for ours, theirs in zip(alone.student.rollouts, result.student.rollouts, strict=True):
            assert ours.ids.tolist() == theirs.ids.tolist()
        side = next(t.side for t in result.teachers if t.candidate.label == label)
        np.testing.assert_array_equal(side.reward, alone.best.side.reward)
    same = next(f for f in result.teachers[2].candidate.findings if f.topic == "same")
    assert same.level == "failure"  # the student itself has nothing to teach
    with pytest.raises(UserError, match="opd check"):
        config.load(write(file, teacher=[{"model": m} for m in models]))


def test_training_adopts_the_record_of_its_check(file):
    checked = run_check(write(file, train__steps=1, eval=[]), ())
    result = CliRunner().invoke(app, ["train", str(file), "--quiet"])
    assert result.exit_code == 0
    adopted = json.loads((file.parent / "run" / "check.json").read_text())
    assert adopted["verdict"] == checked.best.verdict != "go"  # of one step, not of the pair
    other = CliRunner().invoke(
        app, ["train", str(file), "--quiet", f"teacher.model={STUDENT}", "output.dir=" + str(
            file.parent / "other")]
    )  # fmt: skip
    assert other.exit_code == 0
    assert not (file.parent / "other" / "check.json").exists()


@pytest.mark.slow
def test_without_answers_the_limitation_is_named(file, tmp_path):
    blind = tmp_path / "blind.jsonl"
    rows = [{"problem": f"sum owl fox {a}"} for a in ("bee", "cat", "dog", "elk", "gnu", "hen")]
    blind.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_check(write(file, prompts={"path": str(blind)}, eval=[]), ())
    assert result.best.forecast.change is None
    assert result.best.verdict == "not known"
    assert any("answer column" in advice.text for advice in result.best.advice)
    assert "No prompt has an answer" in result.limitations[0]
    graded = run_check(write(file, prompts={"path": str(blind)}), ())
    assert "those of sum are used instead" in graded.limitations[0]
    assert graded.best.forecast.change.value > 0.1


def test_a_grader_that_never_matches_is_suspected_first(file, tmp_path, capsys):
    wrong = tmp_path / "wrong.jsonl"
    rows = [{"problem": f"sum owl fox {a}", "answer": "42"} for a in ("bee", "cat", "dog", "elk")]
    wrong.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_check(write(file, prompts={"path": str(wrong), "grader": "exact"}, eval=[]), ())
    assert result.best.verdict == "not known"
    assert "suspect the grader or the template" in result.best.reasons[0].text
    assert len(result.examples) == 2
    assert result.examples[0]["answer"] == "42"
    page = " ".join(capsys.readouterr().out.split())
    assert "42" in page
    assert "chance" not in page
    assert "predicted change" not in page
    assert "To settle it: read the two answers below" in page


def test_advice_is_applied_to_a_copy_that_validates(file, tmp_path):
    out = tmp_path / "better.yaml"
    path = write(file, rollout__max_new_tokens=17)  # many rollouts are cut off
    result = run_check(path, (), apply=out)
    assert any("cut off" in a.text for a in result.best.advice)
    assert config.load(out).rollout.max_new_tokens == 34
    assert config.load(path).rollout.max_new_tokens == 17
    with pytest.raises(UserError, match="exists"):
        run_check(path, (), apply=out)


def test_a_teacher_with_another_tokenizer_is_incompatible(file, tmp_path):
    from opd.testing import tiny_model, tiny_tokenizer

    other = tmp_path / "other"
    tiny_model(0, dtype=torch.float32).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    result = run_check(write(file, teacher={"model": str(other)}), ())
    assert result.best.verdict == "don't"
    assert "tokens differ" in result.best.reasons[0].text
    assert "same family" in result.best.reasons[0].evidence


@pytest.mark.usefixtures("retries_at_once")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None, "loss": {"terms": {"outcome_weight": 1.0}}}, "teacher is null"),
        ({"teacher": []}, "empty list"),
        (
            {"teacher": {"url": "http://127.0.0.1:9", "model": "m", "patience": 0}},
            "teacher.url=http://127.0.0.1",
        ),
        ({"check__orign": 3}, "check.origin"),
    ],
)
def test_a_mistake_is_an_error_that_names_the_key(file, changes, message):
    result = CliRunner().invoke(app, ["check", str(write(file, **changes))])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_json_is_the_record(file):
    result = CliRunner().invoke(app, ["check", str(write(file)), "--json"])
    assert result.exit_code == 0
    printed = json.loads(result.stdout.strip().splitlines()[0])
    kept = json.loads(check_record(file.parent / "run").read_text())
    assert printed == kept
