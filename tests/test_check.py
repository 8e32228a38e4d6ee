"""`opd check` as a user meets it: on the shipped pair, its reverse, several teachers, mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from opd import config
from opd.cli import app
from opd.commands.check import run_check
from opd.demo.run_config import PAIR, demo_config
from opd.errors import UserError
from opd.run.preflight import check_record

STUDENT, TEACHER = str(PAIR / "student"), str(PAIR / "teacher")


def write(path, **changes):
    """The demo's run.yaml, small, with some keys changed."""
    data = demo_config(path.parent / "run")
    data["check"] = {"prompts": 32}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            data[section] = data.get(section, {}) | {name: value}
        else:
            data[section] = value
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run.yaml"


def hashes(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


def test_the_shipped_pair_is_a_go_and_left_as_it_was(file, capsys):
    checked = run_check(write(file), ())
    assert checked.found[0].verdict == "go"
    assert len(checked.own.prompts) == 32  # check.prompts, whatever the rounds
    said = capsys.readouterr().out
    assert "GO" in said
    for part in ("Why", "Handshake", "By quarter", "Cost of 80 steps", "This check took"):
        assert part in said
    record = json.loads(check_record(file.parent / "run").read_text())
    assert record["verdict"] == "go"
    numbers = record["numbers"]
    assert numbers["gap"]["low"] > 0.5
    assert record["plan"]["seconds"] > 0
    assert record["plan"]["steps"] == 80
    assert (file.parent / "run.checked.html").exists()
    assert not (file.parent / "run").exists()


def test_a_timed_step_changes_no_weight(tmp_path):
    from opd.commands.check.candidates import candidate
    from opd.commands.check.timing import Timer
    from opd.run.console import Console
    from opd.setup.session import load_training_prompts

    cfg = config.load(write(tmp_path / "run.yaml"))
    who = candidate(cfg, "teacher", None, tmp_path)
    before = {n: p.detach().clone() for n, p in who.pair.student.parameters().items()}
    timer = Timer(who, load_training_prompts(cfg, who.pair, Console("quiet")), tmp_path)
    step = timer.step(4)
    assert step.tokens > 0
    assert step.share == 4 / cfg.train.prompts_per_step
    assert all(torch.equal(p, before[n]) for n, p in who.pair.student.parameters().items())


def test_the_reverse_is_a_dont_that_names_the_past(file):
    path = write(file, student={"model": TEACHER}, teacher={"model": STUDENT})
    checked = run_check(path, (f"check.origin={STUDENT}",))
    best = checked.found[0]
    assert best.verdict == "don't"
    texts = [r.text for r in best.reasons]
    assert "The teacher is worse than the student: training would lead down" in texts
    assert "The teacher is the student's past again: training would undo gains" in texts
    assert CliRunner().invoke(app, ["check", str(path)]).exit_code == 1


def test_several_teachers_are_ranked_on_the_same_rollouts(file):
    teachers = [{"model": STUDENT}, {"model": TEACHER}]
    checked = run_check(write(file, teacher=teachers), ())
    assert [f.who.label for f in checked.found] == ["teacher", "student"]
    assert [f.verdict for f in checked.found] == ["go", "don't"]
    same = next(p for p in checked.found[1].who.points if p.what == "same")
    assert same.level == "failure"  # the student itself has nothing to teach
    with pytest.raises(UserError, match="opd check"):
        config.load(file)


def test_training_takes_in_what_the_check_said(file):
    run_check(write(file, train__steps=1, eval=[]), ())
    result = CliRunner().invoke(app, ["train", str(file), "--quiet"])
    assert result.exit_code == 0
    adopted = json.loads((file.parent / "run" / "check.json").read_text())
    assert adopted["verdict"] == "go"
    other = CliRunner().invoke(
        app, ["train", str(file), "--quiet", f"teacher.model={STUDENT}", "output.dir=" + str(
            file.parent / "other")]
    )  # fmt: skip
    assert other.exit_code == 0
    assert not (file.parent / "other" / "check.json").exists()


def test_without_answers_what_is_lost_is_said(file, tmp_path):
    blind = tmp_path / "blind.jsonl"
    rows = [{"problem": f"sum owl fox {a}"} for a in ("bee", "cat", "dog", "elk", "gnu", "hen")]
    blind.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = run_check(write(file, prompts={"path": str(blind)}, eval=[]), ())
    assert checked.found[0].prospect.change is None
    assert checked.found[0].verdict == "go with changes"
    assert "No prompt has an answer" in checked.lost[0]
    told = run_check(write(file, prompts={"path": str(blind)}), ())
    assert "those of sum are used instead" in told.lost[0]
    assert told.found[0].verdict == "go"


def test_a_grader_that_never_matches_is_suspected_first(file, tmp_path, capsys):
    wrong = tmp_path / "wrong.jsonl"
    rows = [{"problem": f"sum owl fox {a}", "answer": "42"} for a in ("bee", "cat", "dog", "elk")]
    wrong.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = run_check(write(file, prompts={"path": str(wrong), "grader": "exact"}, eval=[]), ())
    assert checked.found[0].verdict == "don't"
    assert "suspect the grader or the template" in checked.found[0].reasons[0].text
    assert len(checked.examples) == 2
    assert checked.examples[0]["answer"] == "42"
    assert "42" in capsys.readouterr().out


def test_advice_is_applied_to_a_copy_that_validates(file, tmp_path):
    out = tmp_path / "better.yaml"
    path = write(file, rollout__max_new_tokens=6)  # every rollout is cut off
    checked = run_check(path, (), apply=out)
    assert any("cut off" in a.text for a in checked.found[0].advice)
    assert config.load(out).rollout.max_new_tokens == 12
    assert config.load(path).rollout.max_new_tokens == 6
    with pytest.raises(UserError, match="exists"):
        run_check(path, (), apply=out)


def test_a_teacher_of_another_tokenizer_fails_the_handshake(file, tmp_path):
    from conftest import tiny_model, tiny_tokenizer

    other = tmp_path / "other"
    tiny_model(0, dtype=torch.float32).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    checked = run_check(write(file, teacher={"model": str(other)}), ())
    assert checked.found[0].verdict == "don't"
    assert "tokens differ" in checked.found[0].reasons[0].text
    assert "same family" in checked.found[0].reasons[0].evidence


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher": None, "loss": {"terms": {"outcome_weight": 1.0}}}, "teacher is null"),
        ({"teacher": []}, "empty list"),
        ({"teacher": {"url": "http://127.0.0.1:9", "model": "m"}}, "teacher"),
        ({"check__prompt": 3}, "check.prompts"),
    ],
)
def test_mistakes_are_told_in_a_line(file, changes, told):
    result = CliRunner().invoke(app, ["check", str(write(file, **changes))])
    assert isinstance(result.exception, UserError)
    assert told in str(result.exception)


def test_the_budget_ends_the_rounds(file):
    short = run_check(write(file, check={"prompts": 256}), (), budget=1.0)
    assert len(short.own.prompts) < 256
    assert np.isfinite(short.found[0].numbers["gap"].low)


def test_json_is_the_record(file):
    result = CliRunner().invoke(app, ["check", str(write(file)), "--json"])
    assert result.exit_code == 0
    printed = json.loads(result.stdout.strip().splitlines()[0])
    kept = json.loads(check_record(file.parent / "run").read_text())
    assert printed == kept
