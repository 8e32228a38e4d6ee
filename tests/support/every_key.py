"""Runs of two steps on the demo pair, and what a changed key changed in them."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from opd.demo.run_config import PAIR
from support.key_effects import Effect
from support.mistakes import Outcome, make_workspace, type_command

# A rate at which two steps show; a held-out set with several answers, judged at every step.
BASE = {
    "optim": {"lr": 1e-3},
    "train": {"steps": 2, "prompts_per_step": 2},
    "eval": [{"path": "held.jsonl", "n": 2, "every": 1}],
}
SHIPPED = PAIR.parent / "prompts"
FILES = {
    "more.jsonl": "".join((SHIPPED / "echo.jsonl").read_text().splitlines(keepends=True)[:2]),
    "seen.jsonl": "".join((SHIPPED / "train.jsonl").read_text().splitlines(keepends=True)[6:9]),
    "many.jsonl": "".join((SHIPPED / "train.jsonl").read_text().splitlines(keepends=True)[:9]),
    "formal.jsonl": '{"problem": "sum newt elk", "answer": "0.0"}\n'
    '{"problem": "sum elk pig", "answer": "1.0"}\n',
    "examples.jsonl": '{"prompt": "sum elk pig", "completion": "1"}\n',
    "other.jsonl": '{"prompt": "sum gnu gnu", "completion": "newt pig"}\n',
}
# What a start resolves to that changes no number of a run on a CPU.
STATES: dict[str, Callable[[Any], Any]] = {
    "checkpointing": lambda s: any(
        getattr(m, "gradient_checkpointing", False) for m in s.learner.student.causal.modules()
    ),
    "deterministic": lambda s: s.learner.deterministic,
    "masked": lambda s: s.source.special is not None,
    "microbatch": lambda s: s.learner.tokens_per_microbatch,
}
CHANGES_ALWAYS = ("config.json", "run.lock", "env.json", "timings.jsonl", "summary.json")


@dataclass(frozen=True)
class Seen:
    """What a command left.

    Attributes:
        outcome: exit code and text.
        metrics: rows of metrics.jsonl, one name with its values.
        files: sha256 by path, run folder and what is beside it.
        states: see `STATES`.
    """

    outcome: Outcome
    metrics: Mapping[str, tuple[float | None, ...]]
    files: Mapping[str, str]
    states: Mapping[str, Any]


@cache
def observe(command: str, overrides: str) -> Seen:
    """Type a command in a workspace of its own; equal ones are typed once."""
    with TemporaryDirectory() as name:
        return _observe(Path(name), command, overrides)


def _observe(folder: Path, command: str, overrides: str) -> Seen:
    states: dict[str, Any] = {}
    make_workspace(folder, **BASE)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    words = [part for part in overrides.split(" ; ") if part]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opd.commands.report.report_after_training", lambda *args: None)
        watch_starts(patch, states)
        outcome = type_command(folder, command, "run.yaml", *(unquoted(w) for w in words))
    rows = [json.loads(line) for line in read_lines(folder / "run" / "metrics.jsonl")]
    names = {name for row in rows for name in row}
    metrics = {n: tuple(row.get(n) for row in rows if n in row) for n in names}
    return Seen(outcome, metrics, hashes(folder), states)


def unquoted(word: str) -> str:
    """An override as a shell hands it over: quotes around the whole value are gone."""
    key, _, value = word.partition("=")
    whole = value[:1] == value[-1:] == "'"
    return f"{key}={shlex.split(value)[0]}" if whole else word


def watch_starts(patch: pytest.MonkeyPatch, states: dict[str, Any]) -> None:
    """Note the states of the session that a training begins with."""
    from opd.recipes import distillation

    distill = distillation.distill

    def noting(session: Any, *args: Any) -> Any:
        for name, state in STATES.items():
            try:
                states[name] = state(session)
            except AttributeError:
                states[name] = None
        return distill(session, *args)

    patch.setattr(distillation, "distill", noting)


def read_lines(path: Path) -> list[str]:
    """Lines of a file; none if it is not there."""
    return path.read_text().splitlines() if path.exists() else []


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file that the commands wrote, by path in the workspace."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in CHANGES_ALWAYS and path.parent.name != "student"
    }


def difference(effect: Effect) -> str | None:
    """What is wrong with an effect: None where it is as written."""
    changed = observe(effect.command, f"{effect.base} ; {effect.change}".strip(" ;"))
    kind, _, what = effect.shows.partition(":")
    if kind == "refuses":
        as_written = changed.outcome.code == 2 and what in changed.outcome.text
        return None if as_written else changed.outcome.text
    base = observe(effect.command, effect.base)
    for seen in (base, changed):
        if seen.outcome.code != 0 and kind != "state":
            return seen.outcome.text
    if kind == "says":
        if what in base.outcome.text:
            return f"the base says {what!r}, too"
        return None if what in changed.outcome.text else changed.outcome.text
    if kind == "state":
        same = base.states.get(what) == changed.states.get(what)
        return f"{what} is {base.states.get(what)} in both" if same else None
    before, after = selected(base, kind, what), selected(changed, kind, what)
    return f"nothing of {effect.shows} differs: {before}" if before == after else None


def selected(seen: Seen, kind: str, what: str) -> dict[str, Any]:
    """The metrics or files that an effect is about."""
    pattern = {"weights": "run/final/*.safetensors", "file": f"run/{what}"}.get(kind, what)
    values: Mapping[str, Any] = seen.metrics if kind == "metric" else seen.files
    return {name: v for name, v in values.items() if fnmatch.fnmatchcase(name, pattern)}
