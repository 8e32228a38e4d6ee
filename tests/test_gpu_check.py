"""The GPU check runs as a dry run on a CPU: every section, nothing broken."""

from __future__ import annotations

import json

import pytest

from opd.gpu_check.__main__ import SECTIONS, main

NAMES = [section.__name__ for section, _ in SECTIONS]


@pytest.mark.parametrize(
    "names",
    [[n for n in NAMES if n != "resume"], pytest.param(["resume"], marks=pytest.mark.slow)],
    ids=["in this process", "runs of the command line"],
)
def test_every_section_runs_on_a_cpu(tmp_path, capsys, names):
    arguments = ["--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", ",".join(names)]
    code = main(arguments)
    findings = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {f["section"] for f in findings} == set(names)
    assert [f for f in findings if f["level"] == "FAIL"] == []
    assert code == 0
    table = (tmp_path / "gpu_check.md").read_text()
    assert all(f["text"] in table for f in findings)
    assert "0 FAIL" in capsys.readouterr().out
