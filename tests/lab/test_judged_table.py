"""docs/check.md: intervals of each world's numbers, and forecasts fitted on fewer worlds."""

import numpy as np
import pytest

from opd.reports.document import Document, Section
from opd.reports.markdown import render_markdown
from opd_lab.forecast_fit import fit_forecast
from opd_lab.pairs import resampling, world_count
from opd_lab.pairs.judged_table import intervals, judged
from opd_lab.pairs.judging import fit_rows, judge_outcomes, summarise
from opd_lab.pairs.world_count import by_world_count, count_section
from support.made_outcomes import make_outcome

TERMS = ("distance", "continuation_gain")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(resampling, "RESAMPLES", 200)


@pytest.fixture(scope="module")
def outcomes():
    rng = np.random.default_rng(0)
    return [make_outcome(world, i, rng) for i in range(30) for world in ("one", "two", "three")]


@pytest.fixture(scope="module")
def cases(outcomes):
    return judge_outcomes(fit_forecast(fit_rows(outcomes), TERMS), outcomes)


def test_numbers_of_a_world_are_those_of_its_judgement_with_intervals(cases):
    world = [case for case in cases if case.outcome.world == "one"]
    whole, measured = summarise(world, "one"), intervals(world)
    assert measured["rank correlation"].value == pytest.approx(whole.spearman)
    assert measured["coverage"].value == pytest.approx(whole.coverage[0.9])
    assert measured["error"].value == pytest.approx(whole.error)
    for e in measured.values():
        assert e.low <= e.value <= e.high
        assert e.n == 30
    copies = [case for case in world for _ in range(4)]
    for name, e in intervals(copies).items():  # lengths of a training tell nothing more
        assert (e.low, e.high) == pytest.approx((measured[name].low, measured[name].high))


def test_the_table_says_in_how_many_worlds_an_interval_is_on_the_wrong_side(cases, monkeypatch):
    def text():
        return render_markdown(Document("", "", [Section("a", "A", judged(cases, "A note."))]))

    assert "Of the 3 worlds with at least 10 trainings" in text()
    assert "rank correlation lies below 0.85 in 0, above in 1 and includes it in 2" in text()
    assert "error lies above 10 points in 0, below in 3 and includes it in 0" in text()
    claimed = {"rank correlation": 1.1, "coverage": -0.1, "error": 0.001}
    monkeypatch.setattr("opd_lab.pairs.judged_table.CLAIMED", claimed)
    assert "rank correlation lies below 1.1 in 3, above in 0" in text()
    assert "error lies above 0.1 points in 3, below in 0" in text()


def test_no_fit_has_seen_the_world_that_it_is_held_against(outcomes, monkeypatch):
    fitted, tested, fit = [], [], world_count.fit_means

    def spy(rows, terms):
        fitted.append({row.world for row in rows})
        return fit(rows, TERMS)

    def predict(model, features, run):
        outcome = next(o for o in outcomes if o.features is features)
        tested.append((len(fitted), outcome.world))
        return world_predict(model, features, run)

    world_predict = world_count.predict
    monkeypatch.setattr(world_count, "fit_means", spy)
    monkeypatch.setattr(world_count, "predict", predict)
    few, most = by_world_count(outcomes)
    assert (few.worlds, most.worlds) == (1, 2)
    assert (few.fits, most.fits) == (9, 3)
    assert [len(worlds) for worlds in fitted] == [1] * 9 + [2] * 3
    assert all(world not in fitted[number - 1] for number, world in tested)
    assert most.error < 0.05
    assert most.worst <= most.spearman
    (section,) = count_section([few, most])
    assert "| 2 | 3 |" in render_markdown(Document("", "", [section]))
    assert not count_section([])
