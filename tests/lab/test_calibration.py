"""What `opd check` promises, held against stored outcomes; the grid and the fit themselves.

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
from opd_lab.calibration import grid
from opd_lab.calibration.commands import FEATURES, FIT, HELD_OUT, wanted
from opd_lab.calibration.fitting import fit, values
from opd_lab.calibration.grid import Pair
from opd_lab.calibration.judging import judgement
from opd_lab.calibration.outcomes import Outcome, load
from opd_lab.checkpoints import RECIPES
from opd_lab.worlds import Chain, PrefixedWorld

STORED = Path(__file__).parent / "outcomes.json"


def of(groups):
    found = [o for o in load(STORED) if (o.pair.world, o.pair.seed) in groups]
    assert len(found) == len(wanted(groups))
    return found


def test_the_promises_hold_on_pairs_nobody_fitted():
    found = judgement(load_model(), of(HELD_OUT))
    assert found.pairs >= 60
    assert found.spearman >= 0.85
    assert found.spearman > found.gain_spearman
    assert found.auroc.value >= 0.9
    assert found.coverage_p > 0.05
    assert found.plain >= 0.6
    assert found.wrong_dont <= 0.03 * found.verdicts["don't"]
    assert found.wrong_go <= 0.03 * found.verdicts["go"]


def test_the_shipped_model_is_the_fit():
    shipped = load_model()
    again = fit([o for o in of(FIT) if not o.pair.again], FEATURES)
    assert again.bias == pytest.approx(shipped.bias, abs=1e-3)
    for ours, theirs in zip(again.terms, shipped.terms, strict=True):
        assert ours.weight == pytest.approx(theirs.weight, abs=1e-3)
    assert again.spread == pytest.approx(shipped.spread, abs=1e-3)


def test_a_world_of_the_held_out_pairs_was_never_fitted():
    assert not {world for world, _ in HELD_OUT} <= {world for world, _ in FIT}
    assert not set(HELD_OUT) & set(FIT)
    first = [p for p in wanted(FIT) + wanted(HELD_OUT) if not p.again]
    again = [p for p in wanted(FIT) + wanted(HELD_OUT) if p.again]
    assert len(first) >= 180
    assert len(again) >= 60


def made(share, teacher, student=0.2, keep=0.3):
    """An outcome that obeys the formula exactly."""
    after = share * teacher + (1 - share) * keep * student
    distance = -float(np.log(share / (1 - share)))
    probe = {
        "weighted_teacher_accuracy": teacher,
        "student_accuracy": student,
        "log_distance": distance,
    }
    pair = Pair("chain", "base", f"t{share}{teacher}", 0, 4)
    estimates = {n: Estimate(v, v - 0.01, v + 0.01, 9) for n, v in probe.items()}
    return Outcome(pair, estimates, student, after, teacher, 1.0)


def test_the_fit_finds_the_formula_that_made_the_outcomes():
    found = [made(s, t) for s in (0.1, 0.3, 0.5, 0.7, 0.9) for t in (0.1, 0.5, 0.9)]
    model = fit(found, ["log_distance"])
    for o in found:  # nearly: the ridge pulls the weight down a little
        assert model.accuracy_after(values(o)) == pytest.approx(o.after, abs=0.03)
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
    from opd_lab.calibration.outcomes import save

    found = [made(0.5, 0.9), replace(made(0.2, 0.4), seconds=2.0)]
    save(found, tmp_path / "o.json")
    assert sorted(load(tmp_path / "o.json"), key=lambda o: o.after) == sorted(
        found, key=lambda o: o.after
    )
