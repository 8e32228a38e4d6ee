"""What the README tells people to type, typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from opd.demo.run_config import PAIR
from support.mistakes import type_command
from support.runs import short_demo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("opd ")]


def opd(words: list[str], folder: Path) -> subprocess.CompletedProcess:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "opd", *words]
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False
    )


def fill_in(file: Path) -> None:
    """Put the shipped pair where the template says `path/to/...`, and make the run short."""
    data = yaml.safe_load(file.read_text())
    demo = short_demo(file.parent / "runs" / "first")
    data["student"]["model"] = str(PAIR / "student")
    data["teacher"]["model"] = str(PAIR / "teacher")
    data["prompts"]["path"] = demo["prompts"]["path"]
    data["rollout"] |= {"max_new_tokens": 24}
    data["train"] |= {"steps": 2, "prompts_per_step": 2}
    data["optim"]["lr"] = demo["optim"]["lr"]
    data["eval"] = [{"path": e["path"], "limit": 4} for e in demo["eval"]]
    file.write_text(yaml.safe_dump(data))


def test_commands_of_the_readme_work(tmp_path):
    """In this process, which imports torch once; `tests/test_cli.py` starts the program."""
    found = commands()
    assert [c.split()[1] for c in found] == [
        "init", "check", "verify", "train", "train", "eval", "report", "export",
    ]  # fmt: skip
    for command in found:
        words = command.split()[1:]
        if words[0] == "check":  # of two steps of two prompts it says rightly that they do nothing
            words += ["train.steps=80", "train.prompts_per_step=16", "--budget", "5"]
        done = type_command(tmp_path, *words)
        assert done.code == 0, (command, done.text)
        assert not done.has_traceback
        if command.startswith("opd init"):
            fill_in(tmp_path / "run.yaml")
    run = tmp_path / "runs" / "first"
    assert (run / "final" / "model.safetensors").is_file()
    assert (run / "report.html").is_file()


def test_python_of_the_readme_works(tmp_path, monkeypatch, capsys):
    """In this process, as those of docs/python.md; `tests/test_library.py` starts another one."""
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(code.splitlines()) <= 15
    assert type_command(tmp_path, "init", "run.yaml").code == 0
    fill_in(tmp_path / "run.yaml")
    code = code.replace("train.steps=50", "train.steps=1")
    exec(code, {"__name__": "__main__"})
    assert "gap_recovery" in capsys.readouterr().out


def test_files_the_readme_links_to_exist():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_wheel_carries_the_demo(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("opd-*.whl")
    assert wheel.stat().st_size < 3 * 2**20
    place = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel],
        check=True,
    )
    done = subprocess.run(
        [sys.executable, "-m", "opd", "demo", "--steps", "2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "was recovered" in done.stdout
