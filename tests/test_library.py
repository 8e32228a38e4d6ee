"""The Python library: objects instead of files, typed results, contracts of user code."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import opd
from opd import losses, metrics
from opd.core import diagnostics
from opd.demo.run_config import PAIR
from opd.models.lm import load_lm
from opd.testing import FakeTeacher
from opd.types import Kind, Scores
from support.runs import short_demo

SMALL = {
    "rollout": {"n": 2, "max_new_tokens": 24},
    "loss": {"k": 16},
    "optim": {"lr": 5e-4},
    "train": {"steps": 2, "prompts_per_step": 4},
}


@pytest.fixture
def rows(tmp_path):
    data = short_demo(tmp_path / "run")
    text = Path(data["prompts"]["path"]).read_text().splitlines()[:24]
    return [json.loads(line) for line in text]


def test_doctests_of_losses_and_metrics():
    for module in (losses, metrics):
        outcome = doctest.testmod(module)
        assert outcome.attempted > 8
        assert outcome.failed == 0


def test_the_losses_are_those_of_the_core():
    assert losses.reverse_kl is opd.core.losses.reverse_kl
    assert metrics.entropy is diagnostics.entropy


def test_importing_opd_imports_no_torch():
    code = "import opd, sys; opd.Run; assert 'torch' not in sys.modules; print(opd.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0.1.0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    data = short_demo(folder / "run")
    text = Path(data["prompts"]["path"]).read_text().splitlines()[:24]
    rows = [json.loads(line) for line in text]
    calls = []

    def reward(completion, answer):
        calls.append((completion, answer))
        return len(completion) / 100

    run = opd.Run(
        str(PAIR / "student"),
        str(PAIR / "teacher"),
        rows,
        reward=reward,
        grader=lambda completion, answer: completion.split()[-1:] == [answer],
        output=folder / "own",
        eval=[{"path": rows[:6], "name": "sum", "n": 1, "every": 2}],
        **SMALL,
    )
    return run, run.train(style="quiet"), calls


def test_a_run_of_objects_trains_and_is_resumable_from_its_files(trained):
    run, summary, calls = trained
    folder = Path(summary["run"])
    assert summary["steps"] == 2
    assert len(calls) == 2 * 4 * 2  # steps, prompts, responses
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["rollout/reward"] for row in logged if "rollout/reward" in row]
    expected = np.mean([len(text) / 100 for text, _ in calls[:8]])
    assert rewards[0] == pytest.approx(expected)
    assert Path(run.config.prompts.path).is_file()
    assert run.config.eval[0].grader.startswith("python:given:")


def test_results_are_typed_and_show_themselves(trained):
    run, *_ = trained
    page = run.report()
    assert page.path.name == "report.html"
    assert page.value["sections"]["verdict"]["parts"]
    assert page._repr_html_().startswith('<iframe sandbox="allow-scripts"')
    assert "<script>" not in page._repr_html_()  # escaped into the frame
    assert str(page).strip()
    both = opd.compare([run.config.output.dir, run.config.output.dir])
    assert both.path is None
    with pytest.raises(opd.UserError, match="cannot be the name of a report"):
        both.save("x.txt")


def test_evaluation_of_objects(trained):
    run, *_ = trained
    result = run.evaluate()
    (one,) = result.value
    assert one.label == "sum"
    assert one.teacher.accuracy.n == one.student.accuracy.n == 6
    assert "teacher's lead" in str(result)


def test_a_model_in_memory_is_the_student(tmp_path, rows):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = PAIR / "student"
    pair = (AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    run = opd.Run(pair, str(PAIR / "teacher"), rows, output=tmp_path / "own", **SMALL)
    saved = AutoModelForCausalLM.from_pretrained(run.config.student.model)
    for name, weight in pair[0].state_dict().items():
        assert torch.equal(weight, saved.state_dict()[name])


def test_a_teacher_of_ones_own_trains_as_the_model_it_wraps(tmp_path, rows):
    lm = load_lm(str(PAIR / "teacher"), dtype="auto", key="teacher.model")
    summaries = []
    for name, teacher in (("own", FakeTeacher.of_model(lm)), ("local", str(PAIR / "teacher"))):
        run = opd.Run(str(PAIR / "student"), teacher, rows, output=tmp_path / name, **SMALL)
        run.train(style="quiet")
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        summaries.append([json.loads(line)["train/loss"] for line in lines])
    assert summaries[0] == pytest.approx(summaries[1], rel=1e-4)


class Silent:
    name, kinds = "silent", frozenset([Kind.SUPPORT])

    def score(self, rollouts, want):
        return [Scores() for _ in rollouts]


class Few(Silent):
    def score(self, rollouts, want):
        return []


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (Silent(), "support was asked for and is missing"),
        (Few(), "returned 0 results for 8 rollouts"),
        (object(), "without name, kinds, score"),
    ],
)
def test_a_teacher_that_breaks_its_contract_is_refused(tmp_path, rows, teacher, message):
    run = opd.Run(str(PAIR / "student"), teacher, rows, output=tmp_path / "own", **SMALL)
    with pytest.raises(opd.UserError, match=message):
        run.train(style="quiet")


def test_a_teacher_by_dotted_path_and_by_entry_point(tmp_path, rows, monkeypatch):
    (tmp_path / "my_teachers.py").write_text(
        "from opd.models.lm import load_lm\nfrom opd.testing import FakeTeacher\n"
        f"def make():\n    lm = load_lm({str(PAIR / 'teacher')!r}, dtype='auto', key='x')\n"
        "    return FakeTeacher.of_model(lm)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run = opd.Run(
        str(PAIR / "student"),
        {"python": "my_teachers:make"},
        rows,
        output=tmp_path / "own",
        **SMALL,
    )
    run.train(style="quiet")
    stored = tmp_path / "own" / "config.json"
    with pytest.raises(opd.UserError, match=r"names Python code to import: teacher\.python"):
        opd.load(stored)
    allowed = opd.load(stored, ["teacher.python=my_teachers:make"])
    assert allowed.teacher.python == "my_teachers:make"
    with pytest.raises(opd.UserError, match="names Python code"):
        opd.evaluate(tmp_path / "own")
    wrong = opd.Run(
        str(PAIR / "student"), {"python": "nobody"}, rows, output=tmp_path / "b", **SMALL
    )
    with pytest.raises(opd.UserError, match=r"nor an entry point of opd\.teachers"):
        wrong.train(style="quiet")


def test_a_grader_must_decide_and_a_reward_be_finite(tmp_path, rows):
    run = opd.Run(
        str(PAIR / "student"),
        str(PAIR / "teacher"),
        rows,
        reward=lambda completion, answer: float("nan"),
        output=tmp_path / "own",
        **SMALL,
    )
    with pytest.raises(opd.UserError, match="no finite number"):
        run.train(style="quiet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "no rows"),
        ({"student": 3}, "must be a folder"),
        ({"teacher": "http://127.0.0.1:8000/v1"}, "its model's name"),
    ],
)
def test_wrong_objects_are_refused_by_name(tmp_path, rows, changes, message):
    given = {"student": "s", "teacher": "t", "prompts": rows} | changes
    with pytest.raises(opd.UserError, match=message):
        opd.Run(**given, output=tmp_path / "own")


USER = """
from __future__ import annotations
from collections.abc import Sequence
import opd
from opd import losses
from opd.types import Kind, Rollout, Scores, Want

class Mine:
    name = "mine"
    kinds = frozenset({Kind.SUPPORT})

    def score(self, rollouts: Sequence[Rollout], want: Want) -> list[Scores]:
        return [Scores(support=r.topk_logp) for r in rollouts]

def reward(completion: str, answer: str, /) -> float:
    return float(answer in completion)

run = opd.Run("student", Mine(), ["a", "b"], reward=reward, train={"steps": 3})
summary = run.train(style="quiet")
result: opd.Result[dict[str, object]] = run.report()
print(result.value["title"], result.path, losses.reverse_kl, opd.__version__)
"""


@pytest.mark.slow
def test_a_users_program_passes_mypy_strict(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(USER)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "user.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr


NOTEBOOK = """
import json, os, signal, sys, threading, opd
rows = [json.loads(line) for line in open(sys.argv[1])][:24]
run = opd.Run(sys.argv[2], sys.argv[3], rows, output=sys.argv[4],
              train={"steps": 500, "prompts_per_step": 4}, rollout={"n": 2, "max_new_tokens": 24})
before = signal.getsignal(signal.SIGINT)
from opd.training.session import Session
log = Session.log
def once(self, step, metrics):
    log(self, step, metrics)
    if step == 2:
        os.kill(os.getpid(), signal.SIGINT)
Session.log = once
try:
    run.train(style="quiet")
except KeyboardInterrupt:
    print("interrupted")
assert signal.getsignal(signal.SIGINT) is before
Session.log = log
print("alive", 1 + 1)
"""


def test_ctrl_c_leaves_the_interpreter_alive(tmp_path):
    data = short_demo(tmp_path / "run")
    words = [data["prompts"]["path"], PAIR / "student", PAIR / "teacher", tmp_path / "own"]
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.stdout.splitlines()[-2:] == ["interrupted", "alive 2"], done.stderr
    assert (tmp_path / "own" / "checkpoints" / "step-2").is_dir()
