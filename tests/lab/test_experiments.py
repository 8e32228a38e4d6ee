"""Experiments on made-up results: complete, typed, stored and shown."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from opd.core.stats import Estimate
from opd_lab.cache_key import experiment_hash
from opd_lab.experiments import all_experiments, more_experiments, quick_experiments
from opd_lab.experiments.experiment import (
    Claim,
    Column,
    Curve,
    Experiment,
    Measurement,
    mean_over_seeds,
    verdict,
)
from opd_lab.experiments.results import (
    SeedResult,
    load_results,
    run_experiment,
    save_result,
)
from opd_lab.experiments.setups import QUICK_SETUP
from opd_lab.experiments.supports import supports
from opd_lab.findings_page import findings_document, write_findings
from support.lab_workspace import MadeUpWorkspace

SETS = (all_experiments(), quick_experiments(), more_experiments())
EXPERIMENTS = [experiment for experiments in SETS for experiment in experiments.values()]
each_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda e: e.name)


@pytest.fixture
def workspace():
    return MadeUpWorkspace(0, Path("nowhere"))


def test_every_experiment_is_there_under_its_name():
    numbers = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 16)
    assert list(all_experiments()) == [f"E{n}" for n in numbers]
    assert list(quick_experiments()) == ["E1", "E2", "E3", "E5", "E9"]
    assert list(more_experiments()) == [f"E{n}" for n in range(19, 24)]


@each_experiment
def test_an_experiment_is_complete(experiment, workspace):
    """It measures, its claims can be judged, its columns are numbers, its curves have points."""
    measurement = experiment.measure(workspace)
    assert isinstance(measurement.numbers, experiment.numbers)
    assert {claim.holds(measurement.numbers) for claim in experiment.claims} <= {True, False}
    measured = [column for column in experiment.columns if not column.label.startswith("rate,")]
    values = [column.value(measurement.numbers) for column in measured]
    assert len(values) > 2
    assert all(value == value for value in values)  # no number is missing
    assert len({*values}) == len(values)  # no two columns show the same number
    assert all(len(curve.x) == len(curve.y) > 1 for curve in measurement.curves)
    assert experiment.paper


@each_experiment
def test_a_result_survives_its_file(experiment, workspace, tmp_path):
    result = run_experiment(experiment, workspace)
    save_result(tmp_path, experiment.name, result, quick=False)
    assert load_results(tmp_path, experiment, quick=False) == [result]


def test_results_of_other_code_or_size_are_left_out(workspace, tmp_path):
    experiment = supports(QUICK_SETUP)
    result = run_experiment(experiment, workspace)
    for seed, quick, source in (
        (1, False, experiment_hash()),
        (0, False, experiment_hash()),
        (2, True, experiment_hash()),
        (3, False, "older"),
    ):
        save_result(tmp_path, "E5", replace(result, seed=seed), quick=quick)
        path = tmp_path / f"seed-{seed}" / "E5.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"source": source}))
    assert [r.seed for r in load_results(tmp_path, experiment, quick=False)] == [0, 1]
    assert [r.seed for r in load_results(tmp_path, experiment, quick=True)] == [2]


def test_the_quick_supports_leave_out_two_and_show_no_number_for_them():
    labels = [column.label for column in supports(QUICK_SETUP).columns]
    assert "union" not in labels
    assert "intersection" in labels


@dataclass(frozen=True)
class Number:
    x: float


def make_experiment(*thresholds):
    claims = tuple(Claim(f"x >= {t}", lambda n, t=t: n.x >= t) for t in thresholds)
    columns = (Column("x", lambda n: n.x),)
    none = Measurement(Number(0.0), [])
    return Experiment("E0", "t", "d", "p", Number, lambda _: none, claims, columns)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((2, 2, 2), "reproduced"),
        ((2, 2, 0.5), "partly"),
        ((1, 1, 1), "reproduced"),
        ((0.5, 0.5, 0.5), "partly"),
        ((0, 0, 2), "not"),
        ((0, 2, 2), "partly"),
    ],
)
def test_verdict_follows_the_rule(values, expected):
    """First claim x >= .5, second x >= 1."""
    assert verdict(make_experiment(0.5, 1), [Number(v) for v in values]) == expected


def test_a_column_is_averaged_over_seeds_with_students_interval():
    estimate = mean_over_seeds(Column("x", lambda n: n.x), [Number(2.0), Number(3.0)])
    assert estimate == Estimate(2.5, pytest.approx(-3.8531), pytest.approx(8.8531), 2)


def write_page(tmp_path, **changes):
    curve = {"panel": "mass outside", "label": "l"}
    seeds = [
        SeedResult(seed, 1.5, Number(x), [Curve(**curve, x=[1.0, 2.0], y=[x, 2 * x])])
        for seed, x in enumerate((2.0, 3.0))
    ]
    results = {"E0": seeds}
    document = findings_document(
        {"E0": make_experiment(1)}, results, [], facts={"Seeds": "0, 1"}, **changes
    )
    return write_findings(document, results, tmp_path, "lab")


def test_page_shows_verdict_claims_numbers_and_curves(tmp_path):
    html = write_page(tmp_path)
    sections = json.loads(html.with_suffix(".json").read_text("utf-8"))["sections"]
    assert sections["verdict"]["parts"][0]["headline"] == "1 of 1 findings of the paper reproduced."
    parts = sections["E0"]["parts"]
    assert parts[1]["rows"][0][1]["shown"] == "2 of 2 seeds"
    assert parts[2]["charts"][0]["data"]["l"]["y"] == [2.5, 5.0]
    assert parts[2]["charts"][0]["data"]["l"]["high"] == [3.0, 6.0]
    assert parts[3]["rows"][0][1]["note"] == "\u22123.85 to 8.85"
    assert "Content-Security-Policy" in html.read_text("utf-8")


def test_markdown_shows_the_same_with_a_figure(tmp_path):
    text = write_page(tmp_path).with_suffix(".md").read_text("utf-8")
    assert "| reproduced \\(2 seeds\\) |" in text
    assert "| x | 2.5 (\u22123.85 to 8.85) | 2, 3 |" in text
    assert "![mass outside](lab/E0.png)" in text
    assert (tmp_path / "lab" / "E0.png").stat().st_size > 1000
