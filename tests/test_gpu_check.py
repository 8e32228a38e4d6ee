"""The GPU check runs as a dry run on a CPU: every section, nothing broken."""

from __future__ import annotations

import json

import pytest
import torch

from opd.gpu_check import correctness, layouts, speed
from opd.gpu_check.__main__ import SECTIONS, main
from opd.gpu_check.harness import Device

NAMES = [section.__name__ for section, _ in SECTIONS]


QUICK = [n for n in NAMES if n != "resume"]


@pytest.mark.parametrize(
    ("names", "everything"),
    [
        (QUICK, False),
        pytest.param(QUICK, True, marks=pytest.mark.slow),
        pytest.param(["resume"], True, marks=pytest.mark.slow),
    ],
    ids=["in this process", "all that is compared", "runs of the command line"],
)
def test_every_section_runs_on_a_cpu(tmp_path, capsys, monkeypatch, names, everything):
    if not everything:  # two of everything that a section goes through, in place of up to nine
        for module, table in ((correctness, "OBJECTIVES"), (layouts, "FAMILIES")):
            monkeypatch.setattr(module, table, dict(list(getattr(module, table).items())[:2]))
    arguments = ["--device", "cpu", "--tiny", "--out", str(tmp_path), "--only", ",".join(names)]
    code = main(arguments)
    findings = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {f["section"] for f in findings} == set(names)
    assert [f for f in findings if f["level"] == "FAIL"] == []
    assert code == 0
    table = (tmp_path / "gpu_check.md").read_text()
    assert all(f["text"] in table for f in findings)
    assert "0 FAIL" in capsys.readouterr().out


def test_a_section_that_does_not_exist_is_refused_and_the_others_are_named(tmp_path, capsys):
    """It ran nothing, failed nothing, and named a table that was not there."""
    with pytest.raises(SystemExit) as ended:
        main(["--device", "cpu", "--out", str(tmp_path), "--only", "parity,decodign"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "decodign" in said
    assert "decoding" in said


def test_an_error_of_many_lines_is_one_row_of_the_table(tmp_path):
    device = Device(torch.device("cpu"), True, 1.0, tmp_path, section="parity")
    device.require(
        False, "broke: CUDA error: launch failed\nCompile with `A|B`", worst=float("nan")
    )
    *_, row = (tmp_path / "gpu_check.md").read_text().splitlines()
    assert row.startswith("| parity | FAIL | broke: CUDA error: launch failed Compile")
    assert row.replace("\\|", "").count("|") == 5
    (finding,) = json.loads((tmp_path / "gpu_check.json").read_text(), parse_constant=pytest.fail)
    assert finding["nonfinite"] == {"numbers.worst": "nan"}


def test_the_driver_is_in_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "driver_version", lambda: "580.1")
    device = Device(torch.device("cpu"), True, 1.0, tmp_path)
    speed.ceilings(device)
    assert any(f.numbers.get("driver") == "580.1" for f in device.findings)
