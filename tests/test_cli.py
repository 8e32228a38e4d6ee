"""Mistakes typed at the command line: a message, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from opd.cli import app, main
from opd.demo.run_config import PAIR
from opd.errors import UserError
from support.everyday import everyday

ROWS = [
    '{"problem": "sum pig gnu jay", "answer": "8"}',
    '{"problem": "sum newt elk", "answer": "0"}',
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a run.yaml that works."""
    monkeypatch.chdir(tmp_path)
    Path("good.jsonl").write_text("\n".join(ROWS))
    data = {
        "student": {"model": str(PAIR / "student")},
        "teacher": {"model": str(PAIR / "teacher")},
        "prompts": {"path": "good.jsonl"},
        "rollout": {"n": 2, "max_new_tokens": 8},
        "train": {"steps": 1, "prompts_per_step": 2},
        "output": {"dir": "run"},
    }
    Path("run.yaml").write_text(yaml.safe_dump(data))
    return tmp_path


def model(name: str, source: str = "teacher", **changes) -> None:
    """A copy of a shipped model with some JSON files changed, or (None) removed."""
    shutil.copytree(PAIR / source, name)
    for file, edit in changes.items():
        path = next(Path(name).glob(f"{file}.json"))
        if edit is None:
            path.unlink()
        else:
            path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def no_tokenizer():
    model("other", tokenizer=None)
    for left in Path("other").glob("tokenizer*"):
        left.unlink()
    return ["student.model=other"]


def swapped_tokens():
    def swap(data):
        vocab = data["model"]["vocab"]
        a, b = list(vocab)[10:12]
        vocab[a], vocab[b] = vocab[b], vocab[a]
        return data

    model("other", tokenizer=swap)
    return ["teacher.model=other"]


def other_ends():
    model("other", generation_config=lambda d: d | {"eos_token_id": [2, 5]})
    return ["teacher.model=other"]


def text(name: str, content: str, *overrides: str):
    """Write a file; the run uses it as its prompts, or as `overrides` say."""

    def make():
        Path(name).write_text(content)
        return list(overrides) or [f"prompts.path={name}"]

    return make


def taken():
    Path("run").mkdir()
    Path("run/precious.txt").write_text("mine")
    return []


MISTAKES = {
    "unknown key": (lambda: ["train.stpes=3"], r"Did you mean train\.steps"),
    "wrong type": (lambda: ["train.steps=few"], r"train\.steps.*'few'"),
    "missing prompt file": (lambda: ["prompts.path=no.jsonl"], r"No such file: no\.jsonl"),
    "missing model": (lambda: ["student.model=./nope"], r"student\.model=\./nope"),
    "bad line": (text("bad.jsonl", ROWS[0] + "\n{oops\n"), r"bad\.jsonl, line 2"),
    "empty file": (text("empty.jsonl", ""), r"empty\.jsonl is empty"),
    "missing column": (text("c.jsonl", '{"text": "x"}\n'), r"Found: text.*Allowed: prompt"),
    "no tokenizer": (no_tokenizer, "has no tokenizer"),
    "tokenizers differ": (swapped_tokens, "different tokenizers.*2 tokens differ"),
    "ends differ": (other_ends, r"rollout\.stop=union"),
    "no room": (lambda: ["rollout.max_new_tokens=5000"], "leaves no room"),
    "prompts too long": (lambda: ["prompts.max_tokens=2"], r"Raise prompts\.max_tokens"),
    "folder exists": (taken, "--overwrite"),
    "eval without answers": (
        text("e.jsonl", '{"prompt": "a"}\n', "eval=[{path: e.jsonl}]"),
        "needs an answer for every prompt",
    ),
    "reward without answers": (
        lambda: [*text("r.jsonl", '{"prompt": "sum pig"}\n')(), "loss.terms.outcome_weight=1"],
        "needs an answer for every prompt",
    ),
    "lora on nothing": (
        lambda: ["student.lora={rank: 2, target_modules: [nothing]}"],
        r"student\.lora\.target_modules",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_message(place, name):
    make, said = MISTAKES[name]
    overrides = make()
    before = {p.name for p in place.iterdir()}
    result = CliRunner().invoke(app, ["train", "run.yaml", "--quiet", *overrides])
    assert isinstance(result.exception, UserError), result.exception
    with pytest.raises(UserError, match=rf"(?s){said}"):
        raise result.exception
    assert {p.name for p in place.iterdir()} == before
    if name == "folder exists":
        assert [p.name for p in Path("run").iterdir()] == ["precious.txt"]


PADDING = 7  # rows of a head beyond the tokenizer's ids


def widened(name: str, source: str) -> None:
    """A shipped model with padding rows that would win every draw if they took part."""
    import torch
    from transformers import AutoModelForCausalLM

    wide = AutoModelForCausalLM.from_pretrained(PAIR / source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wide.resize_token_embeddings(wide.config.vocab_size + PADDING, mean_resizing=False)
        rows = wide.get_output_embeddings().weight.data[-PADDING:]
        rows.copy_(20 * torch.randn(rows.shape))
    wide.save_pretrained(name)
    for file in (*(PAIR / source).glob("tok*"), PAIR / source / "chat_template.jinja"):
        shutil.copy(file, name)


@pytest.mark.parametrize("loss", everyday(["loss.support=student_topk", "loss.support=full"], 1))
def test_a_wider_padded_head_is_masked(place, loss):
    import torch
    from transformers import AutoModelForCausalLM

    from opd.run.rollouts import read_step

    models = {}
    for run, folder in (("plain", PAIR), ("wide", place)):
        if run == "wide":
            widened("student", "student")
            widened("teacher", "teacher")
        words = ["train", "run.yaml", "--quiet", loss, "optim.weight_decay=0", "optim.lr=0.01"]
        words += [f"output.dir={run}", *(f"{m}.model={folder / m}" for m in ("student", "teacher"))]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.exception
        models[run] = AutoModelForCausalLM.from_pretrained(f"{run}/final")
    vocab = models["plain"].config.vocab_size
    (rollouts, scores), (expected, _) = (
        read_step(next(Path(f"{run}/rollouts").glob("*.parquet"))) for run in ("wide", "plain")
    )
    assert [r.ids.tolist() for r in rollouts] == [r.ids.tolist() for r in expected]
    for array in (*(r.topk_ids for r in rollouts), *(s.topk_ids for s in scores)):
        assert array is None or array.max() < vocab
    before = AutoModelForCausalLM.from_pretrained("student").get_output_embeddings().weight
    after = models["wide"].get_output_embeddings().weight
    assert torch.equal(after[vocab:], before[vocab:])  # never trained
    assert not torch.equal(after[:vocab], before[:vocab])
    torch.testing.assert_close(after[:vocab], models["plain"].get_output_embeddings().weight)
    metrics = [
        json.loads(Path(f"{run}/metrics.jsonl").read_text().splitlines()[-1])
        for run in ("wide", "plain")
    ]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4, abs=1e-6)


def test_init_never_overwrites(place):
    result = CliRunner().invoke(app, ["init", "run.yaml"])
    assert isinstance(result.exception, UserError)
    assert "good.jsonl" in Path("run.yaml").read_text()


def test_one_hostile_answer_costs_its_time_limit_and_no_more():
    from opd.data.graders import make_grader

    grader = make_grader("math", ["\\frac{1}{2}", "3", "\\sqrt{2}"], limit=2.0)
    began = time.monotonic()
    try:
        texts = ["\\boxed{\\frac{2}{4}}", "\\boxed{9^{9^{9}}}", "\\boxed{2^{1/2}}"]
        grades = grader.grade(texts, ["\\frac{1}{2}", "3", "\\sqrt{2}"])
    finally:
        grader.close()
    assert [g.correct for g in grades] == [True, False, True]
    # the limit once, and two starts of the child, each some seconds on a busy machine
    assert time.monotonic() - began < 60


HELP = """
import sys, time
sys.argv = ["opd", *sys.argv[1:]]
from opd.cli import app
try:
    app()
except SystemExit as end:
    assert end.code == 0, end.code
print({"torch", "transformers", "matplotlib", "numpy"} & sys.modules.keys(), time.process_time())
"""


def test_without_arguments_the_four_commands_one_needs_first_are_shown(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["opd"])
    main()
    lines = capsys.readouterr().out.splitlines()
    commands = [line.split()[:2] for line in lines if line.startswith("  opd ")]
    assert commands == [["opd", name] for name in ("demo", "init", "check", "train")]


def test_the_version_is_told():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"opd {version('opd')}\n")


def test_shells_can_complete():
    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


@pytest.mark.parametrize("words", [["--help"], ["report", "--help"], ["lab", "run", "--help"]])
def test_help_imports_nothing_heavy_and_answers_at_once(words):
    done = subprocess.run(
        [sys.executable, "-c", HELP, *words], capture_output=True, text=True, check=True
    )
    imported, seconds = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert imported == "set()"
    assert float(seconds) < 0.4  # of processor time: other work on the machine does not count


def test_retries_of_the_hub_client_are_not_shown():
    code = (
        "import logging; from opd.cli import setup; setup();"
        "from huggingface_hub import hf_hub_download;"
        "print(logging.getLogger('huggingface_hub.utils._http').getEffectiveLevel())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "40"


def test_the_list_of_commands_cuts_no_sentence():
    listed = CliRunner().invoke(app, ["--help"], terminal_width=80).output
    assert "serve-teacher" in listed
    assert "..." not in listed.split("Commands:")[1]
