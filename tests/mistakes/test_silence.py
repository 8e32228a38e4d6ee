"""What used to pass without a word: said by name, with numbers, before the first step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from opd.demo.run_config import PAIR
from support.mistakes import HELD_OUT, ROWS, make_workspace, run_yaml, snapshot, type_command


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path, eval=[])
    return tmp_path


@pytest.fixture
def no_report(monkeypatch):
    """Runs write none: it takes longer than they do."""
    monkeypatch.setattr("opd.commands.report.report_after_training", lambda *args: None)


def copy_model(role: str) -> Path:
    folder = Path(role)
    folder.unlink()
    shutil.copytree(PAIR / role, folder)
    return folder


def test_held_out_rows_that_are_training_rows_are_named_and_counted(workspace):
    """D5: nothing was said by train, check or report."""
    near = '{"problem": "Sum:  ELK, PIG!", "answer": "1"}'
    Path("held.jsonl").write_text("\n".join([HELD_OUT[0], ROWS[0], near]) + "\n")
    outcome = type_command(workspace, "train", "run.yaml", "eval=[{path: held.jsonl, n: 1}]")
    assert outcome.code == 0, outcome.text
    assert "2 of 3 questions of the held-out set 'held' are also training prompts" in outcome.text
    assert "row 2 = training row 1" in outcome.text
    (overlap,) = json.loads(Path("run/inputs.json").read_text())["overlaps"]
    assert (overlap["exact"], overlap["rows"]) == (2, 3)
    assert (
        "2 of 3 questions of held are also training prompts" in Path("run/report.html").read_text()
    )


@pytest.mark.parametrize(
    ("override", "file", "content", "said"),
    [
        ("prompts.path=x.jsonl", "x.jsonl", ROWS[0] + "\n" + '{"problem": "sum pig"}\n',
         "1 of 2 training prompts have no answer (the first is row 2)"),
        ("prompts.path=x.jsonl", "x.jsonl", '{"problem": "sum pig", "anser": "1"}\n',
         "column 'anser' is not read. Did you mean 'answer'?"),
        ("train.prompts_per_step=64", "x", "", "there are 3 training prompts"),
        ("teacher.model=student", "x", "", "there is nothing to learn from it"),
        ("rollout.ahead=1", "x", "", "rollout.ahead=1 without a rollout server"),
        ("student.shard=fsdp2", "x", "", "student.shard=fsdp2 shards nothing in one process"),
        ("optim.warmup=5", "x", "", "optim.warmup=5 is as long as the run (train.steps=1)"),
        ("eval=[{path: held.jsonl, n: 3, temperature: 0}]", "x", "", "the same answer eval.0.n=3"),
        ("prompts={path: x.jsonl, grader: math}", "x.jsonl", '{"problem": "sum pig"}\n',
         "prompts.grader=math grades nothing"),
        ("teacher={from: student, prompt: '{prompt}'}", "x", "", "is the student itself"),
        ("horizon={grow: {start: 4, until: 5}}", "x", "",
         "horizon.grow.until=5 is beyond train.steps=1: rollouts have at most 4 of"),
        ("prompts.path=x.jsonl", "x.jsonl", ROWS[1] + "\n" + ROWS[0][:-1] + ', "teacher": "b"}\n',
         "1 of 2 rows of x.jsonl name a teacher in a column `teacher`, which is not read"),
    ],
)  # fmt: skip
def test_settings_that_are_often_mistakes_are_said(
    workspace, no_report, override, file, content, said
):
    """D8, and a teacher that is the student."""
    Path(file).write_text(content)
    outcome = type_command(workspace, "train", "run.yaml", override)
    assert outcome.code == 0, outcome.text
    assert said in outcome.text


def test_accuracy_that_nothing_measures_is_said(workspace, no_report):
    """Alarms about accuracy were taken without any held-out set, and could never come."""
    Path("x.jsonl").write_text('{"problem": "sum pig"}\n')
    outcome = type_command(
        workspace, "train", "run.yaml", "prompts.path=x.jsonl", "alarms.action=stop"
    )
    assert outcome.code == 0, outcome.text
    assert "Nothing measures accuracy" in outcome.text
    assert "keeps the student of the last step" in outcome.text


@pytest.mark.slow
def test_a_student_without_a_template_beside_a_teacher_with_one_is_a_choice(workspace):
    """D6: the teacher fell from 100 to 0 % without a word."""
    teacher = copy_model("teacher")
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (teacher / "chat_template.jinja").write_text(template)
    (copy_model("student") / "chat_template.jinja").unlink()
    outcome = type_command(workspace, "train", "run.yaml")
    assert (outcome.code, outcome.changed) == (2, ())
    for choice in ("prompts.teacher_template=true", "=false", "prompts.chat=null"):
        assert choice in outcome.text
    for choice in ("prompts.teacher_template=false", "prompts.chat=null"):
        assert type_command(workspace, "train", "run.yaml", choice, "--overwrite").code == 0
    words = ("train", "run.yaml", "prompts.teacher_template=true", "--overwrite")
    assert type_command(workspace, *words).code == 0
    saved = [p for p in Path("run/final").iterdir() if "template" in p.name]
    assert [p.read_text() for p in saved] == [template]  # the student keeps what it learned with


def skip_report(monkeypatch):
    """Runs end without their report, which is most of the time of a run of one step."""
    monkeypatch.setattr("opd.commands.report.report_after_training", lambda *_: None)


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """A workspace with a run of one step of two, made once."""
    folder = tmp_path_factory.mktemp("one-step")
    make_workspace(folder, eval=[])
    words = ("train", "run.yaml", "train.steps=1", "output.save_every=1", "--quiet")
    with pytest.MonkeyPatch.context() as patch:
        skip_report(patch)
        assert type_command(folder, *words).code == 0
    return folder


@pytest.fixture
def half_done(one_step, tmp_path, monkeypatch):
    """A copy of it, in a folder that --resume goes on with."""
    skip_report(monkeypatch)
    folder = shutil.copytree(one_step, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(folder)
    return folder


RESUME = ("train", "run.yaml", "train.steps=2", "output.save_every=1", "--resume")


def test_resume_says_where_it_goes_on(half_done):
    outcome = type_command(half_done, *RESUME)
    assert outcome.code == 0, outcome.text
    assert "Going on with run from step 1 of 2." in outcome.text


def test_resume_of_a_misspelt_folder_starts_nothing(half_done):
    """D7: it started a new run."""
    outcome = type_command(half_done, *RESUME, "output.dir=rnu")
    assert (outcome.code, outcome.changed) == (2, ())
    assert "output.dir=rnu" in outcome.text


def test_resume_with_other_prompts_is_refused(half_done):
    """D7: a changed prompt file went unnoticed."""
    Path("train.jsonl").write_text("\n".join(ROWS[:2]) + "\n")
    outcome = type_command(half_done, *RESUME)
    assert (outcome.code, outcome.changed) == (2, ())
    assert "this has changed: prompts" in outcome.text


def test_resume_with_another_model_in_the_same_folder_is_refused(half_done):
    Path("teacher").unlink()
    Path("teacher").symlink_to(PAIR / "student")
    outcome = type_command(half_done, *RESUME)
    assert (outcome.code, outcome.changed) == (2, ())
    assert "teacher.model" in outcome.text


def test_resume_to_fewer_steps_than_are_done_is_refused(half_done):
    """D7: it succeeded, and watch said "step 2/1"."""
    assert type_command(half_done, *RESUME).code == 0
    before = snapshot(half_done)
    outcome = type_command(half_done, *RESUME, "train.steps=1")
    assert outcome.code == 2
    assert "has a checkpoint of step 2" in outcome.text
    assert snapshot(half_done) == before


def test_several_mistakes_are_one_message(workspace):
    words = ("prompts.path=no.jsonl", "teacher.model=./nope", "output.trackers=[wandb]")
    outcome = type_command(workspace, "train", "run.yaml", *words)
    assert (outcome.code, outcome.changed) == (2, ())
    assert "3 things are wrong" in outcome.text
    assert all(word in outcome.text for word in ("no.jsonl", "teacher.model", "wandb"))


def test_nothing_is_read_of_weights_before_inputs_are_known_to_be_right(workspace, monkeypatch):
    """D11: a typing error cost minutes of loading on 7B and 32B models."""
    import transformers

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)
    for words in (
        ("train", "run.yaml"),
        ("coldstart", "run.yaml", "coldstart={}"),
        ("check", "run.yaml"),
        ("verify", "run.yaml"),
        ("eval", "run.yaml", "eval=[{path: no.jsonl}]"),
        ("select", "run.yaml", "select={output: x.jsonl}"),
    ):
        outcome = type_command(workspace, *words, "prompts.path=no.jsonl")
        assert (outcome.code, outcome.changed) == (2, ()), (words, outcome.text)
        assert "no.jsonl" in outcome.text


def test_a_run_yaml_is_what_it_says(workspace):
    """The workspace of the mistakes works: nothing but the mistake is wrong with them."""
    Path("run.yaml").write_text(yaml.safe_dump(run_yaml()))
    assert type_command(workspace, "train", "run.yaml", "--quiet").code == 0
