"""Hundreds of mistakes: a message that names the key, exit code 2, nothing written, in time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import opd.setup.session  # noqa: F401 - imports are done before the clock runs
from support.mistake_cases import Mistake, all_mistakes
from support.mistakes import make_workspace, type_command

TIME_FACTOR = float(os.environ.get("OPD_TIME_FACTOR", "4"))  # of machines that do other work too


def marked(mistake: Mistake):
    marks = () if mistake.worst else (pytest.mark.slow,)
    return pytest.param(mistake, id=f"{mistake.kind}: {mistake.name}", marks=marks)


@pytest.mark.parametrize("mistake", [marked(m) for m in all_mistakes()])
def test_a_mistake_is_a_message(mistake, tmp_path, monkeypatch, record_property):
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)
    for name, content in mistake.files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    if mistake.prepare is not None:
        mistake.prepare()
    outcome = type_command(tmp_path, *mistake.words, env=mistake.env)
    record_property("kind", mistake.kind)
    record_property("seconds", round(outcome.seconds, 3))
    missing = [w for w in mistake.says if w.lower() not in outcome.text.lower()]
    assert not outcome.has_traceback, outcome.text
    assert outcome.code == mistake.code, outcome.text
    assert not missing, outcome.text
    assert outcome.changed == ()
    assert outcome.seconds < mistake.seconds * TIME_FACTOR
