"""No command writes over what it reads: every output path of every command on every input path."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import yaml

from opd.demo.run_config import PAIR
from support.mistakes import HELD_OUT, ROWS, run_yaml, snapshot, type_command
from support.runs import run_config, run_to_end

# Inputs of a run.yaml by key; `teacher.model` and others are folders.
INPUTS = {
    "student.model": "student",
    "teacher.model": "teacher",
    "prompts.path": "train.jsonl",
    "eval.0.path": "held.jsonl",
    "loss.terms.sft_path": "gold.jsonl",
    "loss.terms.reference": "base",
    "check.origin": "origin",
    "coldstart.path": "solutions.jsonl",
    "coldstart.prompts": "easy.jsonl",
    "select.against.0": "seen.jsonl",
    "run.yaml": "run.yaml",
}
# (command, how an output path is given)
OUTPUTS = {
    "train output.dir": ("train", "run.yaml", "output.dir={}"),
    "train --overwrite output.dir": ("train", "run.yaml", "--overwrite", "output.dir={}"),
    "train teacher.cache.dir": (
        "train",
        "run.yaml",
        "coldstart=null",
        "teacher.cache={{dir: '{}', offline: true}}",
    ),
    "train rollout.sync_dir": (
        "train",
        "run.yaml",
        "rollout.sync_dir={}",
        "rollout.url=http://127.0.0.1:9/v1",
        "rollout.model=m",
    ),
    "coldstart output.dir": ("coldstart", "run.yaml", "--overwrite", "output.dir={}"),
    "select select.output": ("select", "run.yaml", "select.output={}"),
    "select --overwrite": ("select", "run.yaml", "--overwrite", "select.output={}"),
    "check --apply": ("check", "run.yaml", "--apply", "{}"),
    "init": ("init", "{}"),
    "demo --out": ("demo", "--out", "{}"),
    "serve-teacher --score": (
        *("serve-teacher", "run.yaml", "coldstart=null", "--score", "rollouts"),
        "teacher.cache={{dir: '{}', offline: true}}",
    ),
}
SPELLINGS = {
    "plain": lambda path: path,
    "dots": lambda path: f"./sub/../{path}",
    "absolute": lambda path: str(Path(path).absolute()),
    "symbolic link": lambda path: link(path),
    "hard link": lambda path: hard_link(path),
}


def link(path: str) -> str:
    name = f"link-to-{path}"
    Path(name).symlink_to(path)
    return name


def hard_link(path: str) -> str:
    if Path(path).is_dir():
        return path
    name = f"hard-{path}"
    Path(name).hardlink_to(path)
    return name


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("student", "teacher", "base", "origin"):
        shutil.copytree(PAIR / ("student" if name in ("base", "origin") else name), name)
    Path("sub").mkdir()
    Path("rollouts").mkdir()
    for name in ("train", "easy", "seen"):
        Path(f"{name}.jsonl").write_text("\n".join(ROWS) + "\n")
    Path("held.jsonl").write_text("\n".join(HELD_OUT) + "\n")
    for name in ("gold", "solutions"):
        Path(f"{name}.jsonl").write_text('{"prompt": "sum pig", "completion": "so pig 1 ANS 1"}\n')
    data = run_yaml(
        loss={
            "terms": {
                "sft_path": "gold.jsonl",
                "sft_weight": 0.1,
                "reference": "base",
                "reward_scale": 1.25,
            }
        },
        check={"origin": "origin"},
        select={"output": "chosen.jsonl", "against": ["seen.jsonl"]},
        coldstart={"path": "solutions.jsonl"},
    )
    write_run_yaml(data)
    return tmp_path


def write_run_yaml(data) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(data))


def cases():
    """Links are tried at one key of a file and one of a folder."""
    for (name, words), (key, path) in itertools.product(OUTPUTS.items(), INPUTS.items()):
        yield pytest.param(words, path, "plain", id=f"{name} = {key}")
        if key in ("student.model", "prompts.path"):
            for spelling in list(SPELLINGS)[1:]:
                label = f"{name} = {key}, {spelling}"
                yield pytest.param(words, path, spelling, id=label, marks=pytest.mark.slow)


@pytest.mark.parametrize(("words", "path", "spelling"), list(cases()))
def test_an_output_that_is_an_input_is_refused(workspace, words, path, spelling):
    if path == INPUTS["coldstart.prompts"]:  # excludes coldstart.path
        write_run_yaml(
            yaml.safe_load(Path("run.yaml").read_text()) | {"coldstart": {"prompts": path}}
        )
    given = SPELLINGS[spelling](path)
    outcome = type_command(workspace, *(w.format(given) for w in words))
    assert outcome.code == 2, outcome.text
    assert not outcome.has_traceback
    assert outcome.changed == ()
    assert Path(given).name in outcome.text


@pytest.mark.parametrize("inside", ["student/x.jsonl", "teacher/new/x.jsonl"])
@pytest.mark.parametrize("name", ["select select.output", "check --apply"])
def test_an_output_inside_an_input_folder_is_refused(workspace, name, inside):
    outcome = type_command(workspace, *(w.format(inside) for w in OUTPUTS[name]))
    assert (outcome.code, outcome.changed) == (2, ()), outcome.text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matrix") / "run"
    run_to_end(run_config(folder, steps=2))
    return folder


@pytest.fixture
def finished_copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path


RUN_INPUTS = (
    "run",
    "run/config.json",
    "run/final",
    "run/checkpoints",
    "run/metrics.jsonl",
    "run/env.json",
    "run/rollouts",
    "run/eval",
    "run/final/model.safetensors",
    "run/checkpoints/step-2",
)


@pytest.mark.parametrize("target", RUN_INPUTS)
@pytest.mark.parametrize(
    "words",
    [
        ("export", "run", "--out"),
        ("export", "run", "--merge", "--out"),
        ("compare", "run", "run", "--out"),
        ("compare", "run", "run", "--overwrite", "--out"),
    ],
    ids=" ".join,
)
def test_nothing_of_a_run_is_replaced_by_what_is_made_of_it(finished_copy, words, target):
    outcome = type_command(finished_copy, *words, target)
    assert (outcome.code, outcome.changed) == (2, ()), outcome.text


@pytest.mark.slow
def test_a_report_that_opd_did_not_write_is_not_replaced(finished_copy):
    mine = finished_copy / "run" / "report.html"
    mine.write_text("<h1>my own page</h1>")
    outcome = type_command(finished_copy, "report", "run")
    assert (outcome.code, outcome.changed) == (2, ()), outcome.text
    mine.unlink()
    assert type_command(finished_copy, "report", "run").code == 0
    assert type_command(finished_copy, "report", "run").code == 0  # its own is rewritten


def test_overwrite_deletes_only_what_the_run_wrote(finished_copy):
    run = finished_copy / "run"
    mine = [
        "notes.md",
        "final/notes.txt",
        "checkpoints/mine.safetensors",
        "rollouts/a.parquet",
        "plots/a/b.png",
        "eval/table.csv",
        "checkpoints/step-2/why.txt",
    ]
    for name in mine:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"mine: {name}")
    config = yaml.safe_load((run / "config.json").read_text())
    config["output"]["dir"] = "run"
    config["train"]["steps"] = 1
    (finished_copy / "again.yaml").write_text(yaml.safe_dump(config))
    outcome = type_command(finished_copy, "train", "again.yaml", "--overwrite", "--quiet")
    assert outcome.code == 0, outcome.text
    assert [n for n in mine if (run / n).read_text() != f"mine: {n}"] == []
    assert "notes.md" in outcome.text  # and says what it left


@pytest.mark.parametrize(
    "override", ["student.model=run/final", "prompts.path=run/train.jsonl"], ids=str
)
def test_a_run_never_deletes_what_it_starts_from(finished_copy, override):
    """D1: `student.model=run/final --overwrite` deleted the trained student, exit 0."""
    run = finished_copy / "run"
    (run / "train.jsonl").write_text("\n".join(ROWS) + "\n")
    config = yaml.safe_load((run / "config.json").read_text())
    config["output"]["dir"], config["train"]["steps"] = "run", 1
    (finished_copy / "again.yaml").write_text(yaml.safe_dump(config))
    before = snapshot(run)
    outcome = type_command(finished_copy, "train", "again.yaml", override, "--overwrite", "--quiet")
    after = snapshot(run)
    if override.startswith("student"):
        assert (outcome.code, outcome.changed) == (2, ()), outcome.text
    else:  # a file of the user's in the run folder is simply left there
        assert outcome.code == 0
        assert after["train.jsonl"] == before["train.jsonl"]
