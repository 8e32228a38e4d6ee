"""The targets of `opd check`, judged on stored outcomes; the grid and the fit themselves.

`outcomes.json` holds probe and outcome of every pair of the calibration (`opd lab calibrate`).
A change of the model, of the formula or of the verdict's thresholds is judged here in a second.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from opd.core.stats import Estimate
from opd.recipes.check.forecast import load_model
from opd.recipes.check.verdict import GO, NO_GO
from opd_lab.calibration import grid, page
from opd_lab.calibration.commands import FEATURES, FIT, HELD_OUT, pairs_of
from opd_lab.calibration.fitting import fit
from opd_lab.calibration.grid import Pair
from opd_lab.calibration.judging import judge_model
from opd_lab.calibration.outcomes import Outcome, first_runs, load_outcomes, save_outcomes
from opd_lab.checkpoints import RECIPES
from opd_lab.worlds import Chain, PrefixedWorld

STORED = Path(__file__).parent / "outcomes.json"


def outcomes_of(groups):
    outcomes = [o for o in load_outcomes(STORED) if (o.pair.world, o.pair.seed) in groups]
    assert len(outcomes) == len(pairs_of(groups))
    return outcomes


def test_the_targets_are_met_on_held_out_pairs():
    judgement = judge_model(load_model(), outcomes_of(HELD_OUT))
    assert judgement.pairs >= 60
    assert judgement.spearman >= 0.85
    assert judgement.spearman > judgement.gain_spearman
    assert judgement.auroc.value >= 0.9
    assert judgement.coverage_p > 0.05
    assert judgement.decided >= 0.6
    assert judgement.wrong_no_go <= 0.03 * judgement.verdicts[NO_GO]
    assert judgement.wrong_go <= 0.03 * judgement.verdicts[GO]


def test_the_shipped_model_is_the_fit():
    shipped = load_model()
    again = fit(first_runs(outcomes_of(FIT)), FEATURES)
    assert again.bias == pytest.approx(shipped.bias, abs=1e-3)
    for ours, theirs in zip(again.terms, shipped.terms, strict=True):
        assert ours.weight == pytest.approx(theirs.weight, abs=1e-3)
    assert again.spread == pytest.approx(shipped.spread, abs=1e-3)


def test_a_world_of_the_held_out_pairs_was_never_fitted():
    assert not {world for world, _ in HELD_OUT} <= {world for world, _ in FIT}
    assert not set(HELD_OUT) & set(FIT)
    first = [p for p in pairs_of(FIT) + pairs_of(HELD_OUT) if not p.repetition]
    again = [p for p in pairs_of(FIT) + pairs_of(HELD_OUT) if p.repetition]
    assert len(first) >= 180
    assert len(again) >= 60


def make_outcome(transfer, teacher, student=0.2, keep=0.3):
    """An outcome that obeys the formula exactly."""
    after = transfer * teacher + (1 - transfer) * keep * student
    distance = -float(np.log(transfer / (1 - transfer)))
    probe = {
        "weighted_teacher_accuracy": teacher,
        "student_accuracy": student,
        "log_distance": distance,
    }
    pair = Pair("chain", "base", f"t{transfer}{teacher}", 0, 4)
    estimates = {n: Estimate(v, v - 0.01, v + 0.01, 9) for n, v in probe.items()}
    return Outcome(pair, estimates, student, after, teacher, 1.0)


def test_the_fit_finds_the_formula_that_made_the_outcomes():
    outcomes = [make_outcome(s, t) for s in (0.1, 0.3, 0.5, 0.7, 0.9) for t in (0.1, 0.5, 0.9)]
    model = fit(outcomes, ["log_distance"])
    for o in outcomes:  # nearly: the ridge pulls the weight down a little
        assert model.accuracy_after(o.values) == pytest.approx(o.after, abs=0.03)
    assert model.terms[0].weight < -1


def test_every_pair_of_the_grid_has_its_checkpoints():
    for world in grid.WORLDS:
        names = {p.name for p in grid.pairs(world, 0)}
        assert len(names) == len(grid.pairs(world, 0))
        for pair in grid.pairs(world, 0):
            for kind in (pair.student, pair.teacher):
                assert f"{grid.PREFIX}{world}-{kind}" in RECIPES


def test_another_template_keeps_problems_answers_and_sides():
    plain, asked = Chain(depth=2), PrefixedWorld(Chain(depth=2))
    for ours, theirs in zip(plain.problems(20, 1), asked.problems(20, 1), strict=True):
        assert theirs.text == f"echo ANS {ours.text}"
        assert theirs.answer == ours.answer
        rngs = [np.random.default_rng(0), np.random.default_rng(0)]
        assert asked.solve(theirs, 1, rngs[0]) == plain.solve(ours, 1, rngs[1])
    known = set(asked.tokenizer().get_vocab())
    assert all(word in known for p in asked.problems(5, 1) for word in p.text.split())


def test_outcomes_survive_their_file(tmp_path):
    outcomes = [make_outcome(0.5, 0.9), replace(make_outcome(0.2, 0.4), seconds=2.0)]
    save_outcomes(outcomes, tmp_path / "o.json")
    assert sorted(load_outcomes(tmp_path / "o.json"), key=lambda o: o.after) == sorted(
        outcomes, key=lambda o: o.after
    )


def test_page_shows_targets_model_and_every_held_out_pair(tmp_path):
    """Features that are not stored are made up: the ablation fits them, nothing judges them."""
    rng = np.random.default_rng(0)

    def completed(outcome):
        names = {*page.SINGLE_FEATURES, *page.ALTERNATIVES} - set(outcome.probe)
        made_up = {name: Estimate(rng.random(), 0.0, 1.0, 9) for name in sorted(names)}
        return replace(outcome, probe=outcome.probe | made_up)

    fitted, held_out = ([completed(o) for o in outcomes_of(groups)] for groups in (FIT, HELD_OUT))
    facts = {"Command": "opd lab calibrate"}
    path = page.write_page(tmp_path / "check.md", load_model(), fitted, held_out, facts)
    lines = path.read_text("utf-8").splitlines()
    assert any(line.startswith("| as shipped | 0.961 |") for line in lines)
    assert "after = s * weighted_teacher_accuracy + (1 - s) * 0.00 * student" in lines
    pairs = [line for line in lines if line.startswith(("| chain-22-d", "| route-20-d"))]
    assert len(pairs) == len(first_runs(held_out))
    assert sum("(wrong)" in line.replace("\\", "") for line in pairs) == 1
