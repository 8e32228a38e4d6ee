"""Judging the forecast: records survive packing, worlds are left out, wrong verdicts are seen."""

import json
from dataclasses import replace

import numpy as np
import pytest

from opd.recipes.check.forecast_model import load_model
from opd.recipes.check.verdict import GO, NO_GO
from opd.reports.markdown import render_markdown
from opd_lab.forecast_fit import fit_forecast, fit_means
from opd_lab.pairs import judging, resampling
from opd_lab.pairs.design import FITTED
from opd_lab.pairs.figure import coverage, draw_judgement
from opd_lab.pairs.judging import by_world, fit_rows, judge_outcomes, leave_worlds_out, summarise
from opd_lab.pairs.page import Findings, ablate, check_document
from opd_lab.pairs.partial_runs import rank_and_error, whole_trainings
from opd_lab.pairs.real import FITTED as FITTED_REAL
from opd_lab.pairs.records import count_trainings, load_outcomes, outcomes_of, pack
from support.check_features import RUN
from support.made_outcomes import make_outcome

TERMS = ("distance", "continuation_gain")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(resampling, "RESAMPLES", 100)


def write_rows(folder, rows):
    folder.mkdir()
    for row in rows:
        (folder / f"fit-{row['index']:04d}.json").write_text(json.dumps(row))


@pytest.fixture(scope="module")
def outcomes():
    rng = np.random.default_rng(0)
    return [make_outcome(world, i, rng) for i in range(40) for world in ("one", "two", "three")]


FACTS = {"block": "fit", "index": 0, "weights": {"student": "a"}, "seed": 0, "world": "one"}
POINT = [0.5, 0.4, 0.6]
ACCURACY = {"before": [0.1, 0.0, 0.2], "teacher": [0.9, 0.8, 1.0], "20": POINT, "80": POINT}
MEASURED = {
    "features": {
        "gap": [0.3, 0.2, 0.4],
        "pilot_path": [0.05, 0.05, 0.05],
        "stretch_path": [0.4, 0.4, 0.4],
        "stretch_drift": [1.0, 1.0, 1.0],
    },
    "moments": [],
    "run": RUN.record(),
}


def test_packing_joins_outcome_and_features_and_keeps_what_is_incomplete(tmp_path):
    refused = FACTS | {"index": 1, "error": "refused"}
    write_rows(tmp_path / "outcomes", [FACTS | {"accuracy": ACCURACY}, refused])
    write_rows(tmp_path / "features", [FACTS | MEASURED])
    assert pack(tmp_path, tmp_path / "packed") == {"fit": 2}
    loaded = load_outcomes("fit", tmp_path / "packed")
    assert [o.run.steps for o in loaded] == [20, 80]
    assert all(o.change == pytest.approx(0.4) for o in loaded)
    assert loaded[0].features["gap"].low == 0.2
    assert loaded[1].run == RUN
    assert count_trainings(loaded) == 1
    assert not load_outcomes("fresh", tmp_path / "packed")


def test_an_evaluation_on_the_way_is_a_shorter_run_with_the_same_pilot():
    short, whole = outcomes_of(FACTS | MEASURED | {"accuracy": ACCURACY})
    assert whole.features["pilot_path"].value == 0.05
    assert short.features["pilot_path"].value == pytest.approx(0.2)
    assert whole.features["stretch_drift"].value == 1
    assert "stretch_drift" not in short.features  # it would have gone beyond the end: 1.6


def test_packing_refuses_features_of_other_weights(tmp_path):
    write_rows(tmp_path / "outcomes", [FACTS])
    write_rows(tmp_path / "features", [FACTS | {"weights": {"student": "b"}}])
    with pytest.raises(ValueError, match="different weights"):
        pack(tmp_path, tmp_path / "packed")


def test_a_world_is_judged_by_a_model_that_has_not_seen_it(outcomes, monkeypatch):
    seen = []

    def spy(rows, *args, **kwargs):
        seen.append({row.world for row in rows})
        return fit_forecast(rows, *args, **kwargs)

    monkeypatch.setattr(judging, "fit_forecast", spy)
    cases = leave_worlds_out(outcomes, TERMS)
    assert len(cases) == len(outcomes)
    assert sorted(map(sorted, seen)) == [["one", "three"], ["one", "two"], ["three", "two"]]


def test_a_law_that_holds_in_every_world_is_found(outcomes):
    whole = summarise(leave_worlds_out(outcomes, TERMS), "all")
    assert whole.spearman > 0.92
    assert whole.error < 0.04
    assert abs(whole.bias) < 0.02
    assert 0.8 < whole.coverage[0.9] <= 1
    assert not whole.wrong.get(NO_GO)


def test_a_world_that_breaks_the_law_comes_first_and_its_wrong_gos_are_counted(outcomes):
    rng = np.random.default_rng(1)
    odd = [make_outcome("odd", i, rng, change=-0.1, teacher=0.9) for i in range(30)]
    model = fit_forecast(fit_rows(outcomes), TERMS)
    judgements = by_world(judge_outcomes(model, outcomes + odd))
    worst = judgements[0]
    assert worst.label == "odd"
    assert worst.verdicts[GO] > 5
    assert worst.wrong[GO] == worst.verdicts[GO]
    assert worst.bias > 0.1


def test_a_flat_number_has_no_rank_correlation():
    assert np.isnan(judging.rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]))
    assert judging.rank_correlation([1, 2, float("nan"), 4], [1, 2, 3, 4]) == pytest.approx(1)


def test_the_page_shows_worst_world_first_and_every_part(outcomes):
    model = fit_forecast(fit_rows(outcomes), TERMS, fitted_on="made up")
    cases = leave_worlds_out(outcomes, TERMS)
    ablations = ablate(outcomes, TERMS)
    facts = {"Command": "x"}
    findings = Findings(outcomes, cases, cases[:30], model, facts, cases[:5], ablations)
    text = render_markdown(check_document(findings))
    order = [j.label for j in by_world(cases)]
    positions = [text.index(f"| {name} |") for name in order]
    assert positions == sorted(positions)
    for words in (
        "without distance",
        "The shipped forecast",
        "Coverage",
        "reverse_kl",
        "Every wrong go",
        "5 runs of 5 trainings. Sign right on",
        r"Of 30 runs \(30 trainings\) of generated worlds that the shipped forecast was not",
        r"Of 5 runs \(5 trainings\) of real models",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("block", "index", "later"),
    [("fresh", 39, False), ("fresh", 40, True), ("fit", 139, False), ("fit", 140, True)],
)
def test_runs_made_after_the_forecast_are_shown_apart(outcomes, block, index, later):
    model = fit_forecast(fit_rows(outcomes), TERMS)
    facts = {"block": block, "index": index}
    runs = [replace(o, facts=o.facts | facts) for o in outcomes[:4]]
    unseen = judge_outcomes(model, outcomes[:30] + runs)
    text = render_markdown(check_document(Findings(outcomes, unseen, unseen, model, {})))
    assert ("The shipped forecast on runs made after it" in text) == later


def test_the_figure_shows_the_coverage_of_the_intervals(outcomes, tmp_path):
    cases = leave_worlds_out(outcomes[:60], TERMS)
    inside = [case.inside(0.8) for case in cases]
    assert coverage(cases, 0.8) == sum(inside) / len(inside)
    draw_judgement(cases, tmp_path / "forecasts.png")
    assert (tmp_path / "forecasts.png").read_bytes().startswith(b"\x89PNG")


def test_the_shipped_forecast_is_the_fit_of_the_records():
    study = [o for o in load_outcomes("fit") if o.facts["index"] < FITTED]
    real = [o for o in load_outcomes("real") if o.facts["index"] < FITTED_REAL]
    again = fit_means(fit_rows([*load_outcomes("calibration"), *study, *real]), judging.TERMS)
    shipped = load_model()
    for ours, theirs in [
        (again.mixture, shipped.mixture),
        *zip(again.mixture.terms, shipped.mixture.terms, strict=True),
    ]:
        assert ours.adopts == pytest.approx(theirs.adopts, abs=1e-2)
        assert ours.loses == pytest.approx(theirs.loses, abs=1e-2)
    assert [set(c.errors) for c in again.combinations] == [
        set(c.errors) for c in shipped.combinations if "part" not in c.errors
    ]


def test_records_say_what_was_run():
    for block in ("fit", "calibration"):
        outcomes = load_outcomes(block)
        assert outcomes
        for outcome in outcomes:
            assert len(outcome.facts["commit"]) == 40
            assert {"seed", "model_seed", "changes", "student", "teacher"} <= outcome.facts.keys()


def lengths_of_training(index, changes):
    """Outcomes of runs of a quarter, a half, three quarters and all of 80 steps."""
    outcome = make_outcome("one", index, np.random.default_rng(index), teacher=0.9)
    runs = (replace(RUN, steps=steps) for steps in (20, 40, 60, 80))
    return [
        replace(outcome, run=run, after=outcome.before + change)
        for run, change in zip(runs, changes, strict=True)
    ]


def test_a_part_of_a_run_is_held_against_its_end(outcomes):
    falling = lengths_of_training(0, (0.2, 0.1, -0.05, -0.1))
    model = fit_means(fit_rows(outcomes), TERMS)
    cases = judge_outcomes(model, [falling[i] for i in (3, 0, 2, 1)])
    (training,) = whole_trainings(cases)
    assert training.change == pytest.approx(-0.1)
    assert training.on_the_way == pytest.approx((0.2, 0.1, -0.05))
    assert training.predicted == cases[0].predicted


def test_a_run_that_was_evaluated_at_its_end_alone_has_no_part(outcomes):
    cases = judge_outcomes(fit_means(fit_rows(outcomes), TERMS), outcomes[:2])
    training = whole_trainings(cases)[0]
    assert training.change == outcomes[0].change
    assert np.isnan(training.on_the_way).all()


def test_rank_and_error_leave_out_what_was_not_evaluated():
    assert rank_and_error([0.1, 0.2, np.nan, 0.3], [0.2, 0.3, 9, 0.4]) == pytest.approx((1, 0.1))
    assert rank_and_error([0.1, np.nan, np.nan], [0.2, 0.3, 0.4]) is None
