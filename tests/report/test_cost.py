"""What a run cost, against sums made by hand."""

from __future__ import annotations

import json

import pytest

from opd.reports.cost import cost_sections
from opd.reports.read import read_run
from opd.run.folder import RunFolder
from support.run_folders import PROMPTS, STEPS


def costs(path, price=None) -> dict:
    run = read_run(path)
    run.config["output"]["price_per_hour"] = price
    tables = [p for p in cost_sections(run)[0].parts if p.kind == "table"]
    table = next(t for t in tables if t.caption == "Totals")
    return {row[0]: row[1] for row in table.rows}


def test_seconds_tokens_and_calls_are_sums(good):
    totals = costs(good)
    assert totals["machine time"].value == STEPS * 1.0
    assert totals["completion tokens trained on"].value == STEPS * 100
    assert totals["completions scored by the teacher"].value == STEPS * 64 * 4
    # Before, after and the teacher; two answers to a prompt, five tokens each.
    assert totals["completion tokens of evaluations"].value == 3 * PROMPTS * 2 * 5
    assert "3 evaluations" in totals["completion tokens of evaluations"].note
    assert "money" not in totals


@pytest.mark.parametrize(
    ("price", "shown"), [(3600.0, "20.00 USD"), (1.8, "0.01 USD"), (0, "0 USD")]
)
def test_money_is_price_times_time_with_its_basis(good, price, shown):
    money = costs(good, price)["money"]
    assert money.value == pytest.approx(price * STEPS / 3600)
    assert money.text == shown
    assert f"{price:g} USD per hour (output.price_per_hour)" in money.note


def test_a_teacher_server_is_counted_in_requests(make_run):
    path = make_run()
    settings = json.loads((path / "config.json").read_text("utf-8"))
    with RunFolder.create(path, settings, resume=True) as run:
        for step in (21, 22):
            values = {"teacher/requests": 8, "teacher/retries": step - 21}
            run.log_timings(step, values | {"teacher/cache_hits": 0.5, "time/step_s": 1.0})
    totals = costs(path)
    assert totals["requests to the teacher server"].value == 16
    assert totals["of them retries"].value == 1
    assert totals["completions whose scores were cached"].value == 0.5


def test_the_peak_of_a_gpu_is_that_of_the_fullest_step(make_run):
    path = make_run()
    assert "peak memory of a GPU" not in costs(path)
    settings = json.loads((path / "config.json").read_text("utf-8"))
    with RunFolder.create(path, settings, resume=True) as run:
        for step, peak in ((21, 3000.0), (22, 2000.0)):
            run.log_timings(step, {"time/step_s": 1.0, "memory/peak_device_mib": peak})
    assert costs(path)["peak memory of a GPU"].value == 3000.0
