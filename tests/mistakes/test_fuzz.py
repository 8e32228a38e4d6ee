"""run.yaml mutated by its schema: exit code 0 or 2, never 1, never a traceback, nothing written.

OPD_FUZZ=10000 runs as many cases; everyday a few dozen.
"""

from __future__ import annotations

import os
import random
from typing import Any, get_args

import pytest
import yaml

from opd.config import settable_keys
from opd.errors import UserError
from support.mistakes import make_workspace, run_yaml, type_command

CASES = int(os.environ.get("OPD_FUZZ", "60"))
PER_TEST = 20
COMMANDS = ("train", "check", "eval", "verify", "select", "coldstart", "serve-teacher")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 10**9, 2**63, 10**30, 0.5, -0.0, 1e-300, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "auto", "none", "null", "7", "1e-5"),
    *(
        "train.jsonl",
        "held.jsonl",
        "student",
        "teacher",
        "run.yaml",
        "no/such/file",
        "/",
        ".",
        "..",
    ),
    *(
        "~",
        "$HOME",
        "hub:",
        "hub:a/b",
        "http://",
        "http://127.0.0.1:9/v1",
        "cuda",
        "cpu",
        "\x07",
        "ä",
    ),
    *("x" * 5000, "a\nb", "{problem}", "{{ x }}", "[", "%s", "\u202e", "-rf", "*", "null\x00"),
    *([], [[]], [1], ["a"], {}, {"a": 1}, {"path": "held.jsonl"}, [{"path": "held.jsonl"}]),
    *({"model": "student"}, [{"model": "teacher"}], {"output": "x.jsonl"}, {"rank": 2}),
)


def mutated(rng: random.Random) -> str:
    """The text of a run.yaml with one to three mistakes."""
    data = run_yaml(
        coldstart=rng.choice([None, {}]), select=rng.choice([None, {"output": "x.jsonl"}])
    )
    keys = settable_keys()
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(list(keys))
        choices = [a for a in _literals(keys[key].annotation) if isinstance(a, str)]
        value = rng.choice(choices) if choices and rng.random() < 0.4 else rng.choice(VALUES)
        _set(data, key.split("."), value, rng)
    text = yaml.safe_dump(data, allow_unicode=True, sort_keys=False)
    if rng.random() < 0.2:  # a typing error in the text itself
        at = rng.randrange(len(text))
        text = (
            text[:at]
            + rng.choice(["", ":", "\t", "- ", "{", "'", "\x85", "#", "&a "])
            + text[at + 1 :]
        )
    return text


def _literals(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [x for each in inner for x in (_literals(each) or [each])]


def _set(data: Any, names: list[str], value: Any, rng: random.Random) -> None:
    for name in names[:-1]:
        child = data.get(name) if isinstance(data, dict) else None
        if isinstance(child, list) and child and isinstance(child[0], dict):
            child = child[0]
        if not isinstance(child, dict):
            child = {}
            if isinstance(data, dict):
                data[name] = child
        data = child
    if rng.random() < 0.15:
        data.pop(names[-1], None)
    else:
        data[names[-1] if rng.random() < 0.9 else names[-1] + "s"] = value


@pytest.fixture
def no_weights(monkeypatch):
    """What is right so far ends here: weights are loaded by other tests."""

    def end(*args, **kwargs):
        raise UserError("models would be loaded")

    for name in (
        "opd.setup.session.open_models",
        "opd.commands.check.candidates.open_models",
        "opd.commands.verify.open_models",
        "opd.commands.select.run.open_models",
        "opd.setup.models.open_for_evaluation",
        "opd.commands.serve_teacher._load",
        "opd.commands.score.open_models",
    ):
        monkeypatch.setattr(name, end)


@pytest.mark.parametrize("first", range(0, CASES, PER_TEST))
def test_a_mutated_run_yaml_is_right_or_a_message(first, tmp_path, no_weights):
    failures = []
    for seed in range(first, min(first + PER_TEST, CASES)):
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        make_workspace(folder)
        text = mutated(rng)
        (folder / "run.yaml").write_text(text, encoding="utf-8", errors="surrogateescape")
        command = rng.choice(COMMANDS)
        outcome = type_command(folder, command, "run.yaml")
        bad = outcome.code not in (0, 2) or outcome.has_traceback or outcome.changed
        if bad and not (
            command == "check" and outcome.code == 1 and "no-go" in outcome.text.lower()
        ):
            failures.append(
                (seed, command, outcome.code, outcome.text[-600:], outcome.changed, text)
            )
    assert not failures, "\n\n".join(map(str, failures))
