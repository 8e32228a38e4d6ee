"""Which attention kernel runs is recorded, and one whose memory grows with the square is named."""

from __future__ import annotations

import json
import logging

from opd.setup import session as module
from support.runs import open_run, run_config


def kernels_of(path) -> dict[str, str]:
    return json.loads((path / "run" / "env.json").read_text())["attention"]


def test_env_json_says_which_kernels_run(tmp_path, caplog):
    session, _ = open_run(run_config(tmp_path / "run", steps=1))
    session.folder.close()
    assert kernels_of(tmp_path) == {"student": "cpu", "student_decoding": "cpu", "teacher": "cpu"}
    assert "square" not in caplog.text


def test_a_kernel_that_stores_the_score_matrix_is_named(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "attention_kernel", lambda lm, decoding=False: "math")
    with caplog.at_level(logging.WARNING):
        session, _ = open_run(run_config(tmp_path / "run", steps=1))
    session.folder.close()
    assert caplog.text.count("square of the length") == 2
    assert kernels_of(tmp_path)["teacher"] == "math"
