"""What `opd check` and the report show of several teachers, hints and other tokenizers."""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest
import torch
import yaml

from opd import config
from opd.commands.check import rounds, run, run_check
from opd.commands.check.agreement import compare_gradients, cosines, describe
from opd.reports.markdown import render_markdown
from opd.reports.model_card import model_card
from opd.reports.read import read_run
from opd.reports.run_page import run_document
from opd.run.console import Console
from opd.setup.models import open_models
from opd.setup.preflight import read_inputs
from support.foreign import byte_tokenizer, foreign_model
from support.runs import run_config, run_to_end
from support.teacher_runs import self_run, several


def written(tmp_path, data):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_check_judges_each_teacher_on_its_own_prompts(tmp_path, capsys):
    file = written(tmp_path, several(tmp_path / "run"))
    result = run_check(file, (), budget=12.0)
    shown = capsys.readouterr().out
    assert result.teachers
    for name in ("big", "own"):
        assert f"Checking teacher {name} of" in shown
        record = json.loads((tmp_path / f"run.{name}.check.json").read_text())
        assert record["verdict"]
    assert "the teacher sees, for row 1:" in shown
    assert "Gradients of teachers big, own on the same rollouts: cosine" in shown


def test_ctrl_c_ends_the_check_of_several_teachers(tmp_path, capsys, monkeypatch):
    """It ended one teacher's; the next one's two minutes began."""
    monkeypatch.setattr(rounds, "probe_student", Mock(side_effect=KeyboardInterrupt))
    result = run_check(written(tmp_path, several(tmp_path / "run")), (), budget=60.0)
    shown = capsys.readouterr().out
    assert result.interrupted
    assert "Checking teacher big of" in shown
    assert "Checking teacher own of" not in shown
    assert "Gradients of teachers" not in shown
    assert "Not checked: own." in shown


def test_the_comparison_of_teachers_keeps_the_budget_and_ends_at_ctrl_c(
    tmp_path, capsys, monkeypatch
):
    """It began when the time was over and took as long as it took; Ctrl-C was a traceback."""
    cfg = config.parse(several(tmp_path / "run"))
    prompts, console = read_inputs(cfg, Console("quiet")).prompts, Console("plain")
    run._show_agreement(cfg, prompts, tmp_path / "late", console, 0.0)
    assert "pull apart is not known: there was no time to compare them" in capsys.readouterr().out
    monkeypatch.setattr(run, "compare_gradients", Mock(side_effect=KeyboardInterrupt))
    run._show_agreement(cfg, prompts, tmp_path / "ended", console, 60.0)
    assert "pull apart is not known: the check was ended by Ctrl-C" in capsys.readouterr().out


def test_teachers_that_pull_apart_are_seen(tmp_path):
    """One teacher twice has a cosine of 1; opposite gradients have -1."""
    data = several(tmp_path / "run")
    data["teachers"]["own"] = data["teachers"]["big"]
    cfg = config.parse(data)
    prompts = read_inputs(cfg, Console("quiet")).prompts
    (tmp_path / "scratch").mkdir()
    same = compare_gradients(cfg, prompts, tmp_path / "scratch")
    assert same["big, own"] == pytest.approx(1.0, abs=1e-5)
    vector = torch.tensor([1.0, 2.0, -1.0])
    apart = cosines({"a": vector, "b": -vector, "c": torch.tensor([2.0, -1.0, 0.0])})
    assert apart["a, b"] == pytest.approx(-1.0)
    assert apart["a, c"] == pytest.approx(0.0, abs=1e-6)
    assert "they pull the student apart" in describe(apart)[0]


@pytest.mark.slow
def test_check_says_what_aligns_with_another_tokenizer(tmp_path, capsys):
    folder = foreign_model(tmp_path / "teacher", byte_tokenizer())
    data = run_config(tmp_path / "run", steps=4)
    data["teacher"] = {"model": str(folder), "tokenizer": str(folder)}
    data["eval"] = []
    run_check(written(tmp_path, data), (), budget=4.0)
    shown = " ".join(capsys.readouterr().out.split())
    assert "are one token for the teacher too" in shown


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run_to_end(several(folder, steps=4))
    return folder


def test_the_report_has_a_row_for_every_teacher(finished):
    document = run_document(read_run(finished))
    (section,) = [s for s in document.sections if s.name == "teachers"]
    rows = section.parts[0].rows
    assert {row[0] for row in rows} == {"big", "own"}
    labels = [row[1] for row in rows if row[0] == "own"]
    assert {"loss", "fraction of the tokens", "reverse KL, nats", "alarms on its prompts"} <= {
        *labels
    }
    text = render_markdown(document)
    assert "Teacher by teacher" in text
    assert "learns from big, own" in text


def test_the_setup_and_the_card_name_every_teacher(finished):
    run = read_run(finished)
    text = render_markdown(run_document(run))
    assert "do not fit this configuration" not in text
    assert "teachers.own.weights" in text
    card = model_card(run, kind="weights", step=4, reload_check="equal")
    assert "completions from `teacher`, `student` with opd" in card
    assert "`first-256.jsonl`, `second.jsonl`, 4 per step" in card


def test_the_setup_of_a_student_that_teaches_itself(tmp_path):
    run_to_end(self_run(tmp_path / "run", steps=1))
    text = render_markdown(run_document(read_run(tmp_path / "run")))
    assert "do not fit this configuration" not in text
    assert "teacher.from" in text


def test_a_teacher_of_other_tokens_is_not_asked_for_answers(tmp_path):
    folder = foreign_model(tmp_path / "teacher", byte_tokenizer())
    data = run_config(tmp_path / "run", steps=1)
    data["teacher"] = {"model": str(folder), "tokenizer": str(folder)}
    models = open_models(config.parse(data), Console("quiet"))
    assert models.teacher_samplers() is None
    assert models.pair.foreign is not None


def test_a_run_of_one_teacher_has_no_such_section(tmp_path):
    run_to_end(run_config(tmp_path / "run", steps=2) | {"eval": []})
    document = run_document(read_run(tmp_path / "run"))
    assert "teachers" not in [s.name for s in document.sections]
