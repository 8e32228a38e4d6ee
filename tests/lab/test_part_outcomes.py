"""Runs of which a part was made before: which part of whose run, and who is fitted on what."""

import dataclasses
import gzip
import json

import numpy as np
import pytest

from opd.recipes.check.forecast import PART
from opd.recipes.check.forecast_model import load_model
from opd_lab.forecast_fit import fit_forecast
from opd_lab.pairs import part_outcomes, resampling
from opd_lab.pairs.design import FITTED, HALF, HALF_SEEN, plan
from opd_lab.pairs.judging import fit_rows, judge_outcomes
from opd_lab.pairs.part_outcomes import (
    leave_worlds_out_with_parts,
    measured_halves,
    measured_wholes,
    repeated_parts,
    steps_made,
)
from opd_lab.pairs.part_sections import in_short, part_sections, wrong_verdicts
from opd_lab.pairs.real import FITTED as FITTED_REAL
from opd_lab.pairs.real_sections import real_sections
from opd_lab.pairs.records import load_outcomes, load_rows


@pytest.fixture(scope="module")
def study():
    return [o for o in load_outcomes("fit") if o.facts["index"] < 30]


def test_a_part_is_that_of_the_repeat(study):
    parts = repeated_parts(study)
    again = {row["index"]: row["accuracy"] for row in load_rows("repeat")}
    assert len(parts) == 10 / 4 * len(study)  # 1 of 1, 1 and 2 of 2, ... 4 of 4 quarters
    for outcome in parts:
        steps = round(outcome.features["part_steps"].value)
        accuracy = again[outcome.facts["index"]]
        change = accuracy[str(steps)][0] - accuracy["before"][0]
        assert outcome.features["part_resampled"].value == pytest.approx(change)
        assert 0.25 <= steps_made(outcome) <= 1.0
        assert outcome.features["part_path"].value <= steps_made(outcome) + 1e-9  # warm-up
        assert not any(name.startswith("stretch_") for name in outcome.features)


def test_the_interval_of_a_part_is_that_of_two_measurements(study):
    (first, *_) = repeated_parts(study)
    change = first.features["part_resampled"]
    assert 0.02 < (change.high - change.low) / 2 < 0.1


def test_only_the_last_combination_is_fitted_on_parts(study):
    parts = fit_rows(repeated_parts(study)[::8])
    plain, more = (fit_forecast(fit_rows(study), part_rows=rows) for rows in ((), parts))
    assert more.mixture == plain.mixture
    assert more.combinations[:-1] == plain.combinations
    assert PART in more.combinations[-1].errors


def test_the_shipped_forecast_weighs_a_part_as_the_fit_does():
    (shipped,) = [c for c in load_model().combinations if PART in c.errors]
    parts = repeated_parts(load_outcomes("fit"))
    cases = judge_outcomes(load_model(), parts)
    errors = np.abs([case.predicted - case.outcome.change for case in cases])
    assert errors.mean() < 0.09
    assert shipped.errors[PART] < shipped.errors["pilot"]
    assert 0.85 < np.mean([case.inside(0.9) for case in cases]) < 0.95


@pytest.mark.slow
def test_the_shipped_weights_are_the_fit_of_the_records():
    study = [o for o in load_outcomes("fit") if o.facts["index"] < FITTED]
    real = [o for o in load_outcomes("real") if o.facts["index"] < FITTED_REAL]
    rows = fit_rows([*load_outcomes("calibration"), *study, *real])
    again = fit_forecast(rows, part_rows=fit_rows(repeated_parts(study)))
    for ours, theirs in zip(again.combinations, load_model().combinations, strict=True):
        assert ours.errors == pytest.approx(theirs.errors, rel=0.05)
        assert ours.added == pytest.approx(theirs.added, rel=0.05)
        levels = [[value for _, value in each.quantiles] for each in (ours, theirs)]
        assert levels[0] == pytest.approx(levels[1], rel=0.05, abs=0.05)


def test_a_world_is_judged_without_itself(study, monkeypatch):
    some = [o for o in study if o.facts["index"] % 10 in (0, 1)]  # of two worlds
    seen = []
    fit = part_outcomes.fit_forecast

    def watched(rows, **more):
        seen.append(({r.world for r in rows}, {r.world for r in more["part_rows"]}))
        return fit(rows, **more)

    monkeypatch.setattr(part_outcomes, "fit_forecast", watched)
    cases = leave_worlds_out_with_parts(some, repeated_parts(some))
    worlds = sorted({o.world for o in some})
    assert seen == [({worlds[1]}, {worlds[1]}), ({worlds[0]}, {worlds[0]})]
    assert len(cases) == 10 / 4 * len(some)


def test_every_length_has_the_part_that_a_check_would_have_made(tmp_path, monkeypatch):
    (row, *_) = (r for r in load_rows("fit") if "accuracy" in r and "features" in r)
    steps = sorted(int(moment) for moment in row["accuracy"] if moment.isdigit())
    parts = [
        {"part_steps": [float(s)] * 3, "part_path": [0.1] * 3, "part_resampled": [s / 1000] * 3}
        for s in (steps[-1] // 8, *steps)
    ]
    made = row | {"block": HALF, "parts": parts}
    (tmp_path / f"{HALF}.jsonl.gz").write_bytes(gzip.compress(json.dumps(made).encode()))
    wholes = measured_wholes(tmp_path)
    assert [round(o.features["part_steps"].value) for o in wholes] == steps
    outcomes = measured_halves(tmp_path)
    assert [round(o.features["part_steps"].value) for o in outcomes] == [
        steps[-1] // 8,  # half of the first length
        steps[0],
        steps[0],  # a third of the third length
        steps[1],
    ]
    for outcome in outcomes:
        made_steps = round(outcome.features["part_steps"].value)
        expected = outcome.run.path(made_steps) / outcome.run.path()
        assert outcome.features["part_path"].value == pytest.approx(expected)
    monkeypatch.setattr(resampling, "RESAMPLES", 20)
    cases = judge_outcomes(load_model(), outcomes)
    half = "With half of the run made: worlds left out of the fit"
    titles = [each.title for each in part_sections([], cases, cases)]
    assert titles == ["With half of the run made: on runs made before", half]
    assert in_short([], cases) == ""
    later = [numbered_case(case) for case in cases]
    assert [each.title for each in part_sections([], later, later)] == [
        "With half of the run made: the shipped forecast on runs made after it",
        half,
    ]
    assert "made half of the run first (4 runs, 1 trainings" in in_short([], later)
    whole = [numbered_case(case) for case in judge_outcomes(load_model(), wholes)]
    assert "made the whole run first (4 runs, 1 trainings" in in_short(whole, [])
    (section,) = part_sections(whole, [], [])
    assert section.title == "With the whole run made: the shipped forecast on runs made after it"
    (wrong,) = wrong_verdicts([dataclasses.replace(cases[0], verdict="not known")])
    assert "No go or no-go was wrong" in str(wrong)
    assert part_sections([], [], []) == []
    assert measured_halves(tmp_path / "none") == []


def numbered_case(case):
    return dataclasses.replace(case, outcome=numbered(case.outcome, HALF_SEEN))


def numbered(outcome, index):
    return dataclasses.replace(outcome, facts={**outcome.facts, "index": index})


def test_runs_and_models_of_the_new_block_are_of_other_seeds():
    run = plan(HALF, 3)
    others = [plan(block, 3) for block in ("fit", "fresh", "repeat")]
    assert run.seed not in {other.seed for other in others}
    assert run.model_seed not in {other.model_seed for other in others}


def test_real_models_with_a_part_are_told_apart_by_how_much_was_made(tmp_path):
    """Records of the block `half` under the name of the other one: the same outcomes."""
    rows = [row | {"block": "real-part"} for row in load_rows(HALF)[HALF_SEEN : HALF_SEEN + 3]]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "real-part.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    wholes, halves = (f(tmp_path, "real-part") for f in (measured_wholes, measured_halves))
    assert {steps_made(o) for o in wholes} == {1.0}
    assert all(0.25 <= steps_made(o) <= 0.5 for o in halves)
    assert {o.features["part_resampled"].n for o in wholes} == {64}
    cases = [judge_outcomes(load_model(), outcomes) for outcomes in (wholes, halves)]
    _, all_made, half_made = real_sections([], [], *cases)
    assert "the whole run" in all_made.title
    assert "half of the run" in half_made.title
    note, table = all_made.parts
    assert note.text.endswith("points.")
    assert "made all of the steps first" in note.text
    assert len(table.rows) == len(wholes)
    assert [row[-1] == "" for row in table.rows] == [case.right for case in cases[0]]
