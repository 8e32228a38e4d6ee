"""Secrets never reach a file: by key name, by shape, by environment, on the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from opd.run.folder import RunFolder
from opd.run.redact import HIDDEN, redact, redact_command, redact_text
from support.faulty_disk import Unsynced

CANARY = "c4n4ry-0123456789"


@pytest.mark.parametrize(
    "name",
    ["api_key", "API_KEY", "apikey", "teacher_api_key", "hf_token", "token", "auth-token", "secret",
     "client_secret", "password", "db.password", "credentials", "Authorization", "access_key"],
)  # fmt: skip
def test_secret_names(name):
    assert redact({"a": [{name: CANARY}]}) == {"a": [{name: HIDDEN}]}
    assert redact({name: None}) == {name: None}


@pytest.mark.parametrize(
    "name",
    ["api_key_env", "max_tokens", "tokens_per_microbatch", "mask_special_tokens", "tokenizer",
     "key", "monkey", "secretary", "keep", "max_new_tokens"],
)  # fmt: skip
def test_harmless_names(name):
    assert redact({name: "value"}) == {name: "value"}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://me:pw@host:8000/v1", "http://***@host:8000/v1"),
        ("https://token@host/", "https://***@host/"),
        ("http://host/a@b", "http://host/a@b"),
        ("use hf_abcdefghijklmnopqrst now", "use *** now"),
        ("sk-proj-abcdefghijklmnop", "***"),
        ("Bearer abcdefgh.ijk", "Bearer ***"),
        ("hf_hub and sk-learn and Bearer x", "hf_hub and sk-learn and Bearer x"),
        ("runs/sk-8b", "runs/sk-8b"),
    ],
)
def test_shapes(text, clean):
    assert redact_text(text) == clean


def test_values_of_secret_variables(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", CANARY)
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("FILE_TOKEN", "/home/me/runs")
    monkeypatch.setenv("TOKENIZERS", "parallel-please")
    text = f"{CANARY} abc /home/me/runs parallel-please"
    assert redact_text(text) == f"{HIDDEN} abc /home/me/runs parallel-please"


def test_command_lines():
    given = ["opd", "train", "run.yaml", "--token", CANARY, f"--api-key={CANARY}",
             f"teacher.api_key={CANARY}", f"teacher.url=http://u:{CANARY}@h", "train.steps=3",
             "--resume", "rollout.max_new_tokens=5"]  # fmt: skip
    clean = redact_command(given)
    assert CANARY not in str(clean)
    assert clean[:3] == given[:3]
    assert clean[-3:] == given[-3:]
    assert len(clean) == len(given)


def test_canary_in_a_whole_run_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", CANARY)
    monkeypatch.setattr(sys, "argv", ["opd", f"teacher.api_key={CANARY}", CANARY])
    config = {"teacher": {"api_key": CANARY, "url": f"http://u:{CANARY}@h/"}, "train": {"seed": 1}}
    for flags in ({}, {"resume": True}):
        with RunFolder.create(tmp_path / "a", config, ops=Unsynced(), **flags) as run:
            run.log_metrics(1, {"loss": 0.5})
    for path in (tmp_path / "a").rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes(), path


def test_git_state(tmp_path):
    from opd.run.env import git_state

    def git(*words):
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *words],
            cwd=tmp_path, check=True, capture_output=True,
        )  # fmt: skip

    assert git_state(tmp_path) is None
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "m")
    clean = git_state(tmp_path)
    assert len(clean["sha"]) == 40
    assert not clean["dirty"]
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == {"sha": clean["sha"], "dirty": True}
