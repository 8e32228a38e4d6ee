"""A run that began with a cold start: its own axis, its cost, the student between the phases."""

from __future__ import annotations

import json

import numpy as np
import pytest

from opd.reports.coldstart_section import coldstart_sections
from opd.reports.cost import cost_sections
from opd.reports.html import render_html
from opd.reports.read import read_run
from opd.reports.run_page import run_document
from opd.reports.verdict import verdict
from opd.run.folder import RunFolder
from support.html_reports import not_in_sidecar
from support.run_folders import STEPS, plain, write_eval

RECORD = {
    "rounds": 2,
    "steps": 4,
    "tokens": 1234,
    "written_tokens": 1500,
    "probe_tokens": 300,
    "completions": 40,
    "left_out": {"truncated": 3, "repetitive": 1},
    "reason": "overlap mass 0.980 has reached coldstart.mass=0.97",
}


@pytest.fixture
def warmed(make_run):
    path = make_run()
    settings = json.loads((path / "config.json").read_text("utf-8"))
    with RunFolder.create(path, settings, resume=True) as run:
        for step in range(1, 5):
            values = {"coldstart/step": step, "coldstart/loss": 1 / step, "phase": "coldstart"}
            run.log_metrics(0, values)
        for step, mass in ((0, 0.5), (2, 0.75), (4, 0.98)):
            run.log_metrics(0, {"coldstart/step": step, "coldstart/overlap_mass_student": mass})
            run.log_timings(0, {"time/step_s": 2.0, "time/update_s": 1.5})
        write_eval(run, 0, "coldstart-task", 0.5, plain)
    (path / "coldstart.json").write_text(json.dumps(RECORD))
    return read_run(path)


def test_cold_start_has_its_own_axis(warmed):
    loss, mass = (warmed.series(f"coldstart/{n}") for n in ("loss", "overlap_mass_student"))
    np.testing.assert_array_equal(loss.steps, [1, 2, 3, 4])
    np.testing.assert_array_equal(mass.values, [0.5, 0.75, 0.98])
    charts, table = coldstart_sections(warmed)[0].parts
    assert [c.name for c in charts.items] == ["coldstart/overlap_mass_student", "coldstart/loss"]
    cells = {row[0]: row[1].value for row in table.rows}
    assert (cells["their tokens"], cells["left out: truncated"], cells["time"]) == (1234, 3, 6.0)
    assert RECORD["reason"] in table.note


def test_its_time_is_part_of_the_cost_and_not_of_the_curves(warmed):
    tables = [p for p in cost_sections(warmed)[0].parts if p.kind == "table"]
    table = next(t for t in tables if t.caption == "Totals")
    cells = {row[0]: row[1].value for row in table.rows}
    assert cells["machine time"] == STEPS * 1.0 + 6.0
    assert cells["of the machine time, the cold start"] == 6.0
    assert warmed.series("time/step_s").steps.min() == 1


def test_the_student_between_the_phases_is_shown(warmed):
    assert warmed.evals[0].after_coldstart.accuracy.value == pytest.approx(0.5)
    html, sidecar = render_html(run_document(warmed)), run_document(warmed).record()
    assert "after the cold start" in html
    assert not not_in_sidecar(html, sidecar)
    chart = sidecar["sections"]["accuracy"]["parts"][0]["charts"][0]["data"]
    assert chart["steps"] == [0, 0, 20]
    assert chart["accuracy"] == pytest.approx([0.2, 0.5, 0.8])
    texts = [s.text for s in verdict(warmed).sentences]
    assert "It began with a cold start: 1,234 off-policy tokens of the teacher." in texts


def test_a_run_without_one_has_no_such_section(good):
    run = read_run(good)
    assert coldstart_sections(run) == []
    assert run.evals[0].after_coldstart is None
