"""Runs with advised changes, and runs made twice: what docs/check.md says of them."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from opd.core.stats import Estimate
from opd.recipes.check.advice import Advice, decide
from opd.recipes.check.forecast_model import load_model
from opd.recipes.check.verdict import CHANGES, GO
from opd.reports.document import Document
from opd.reports.markdown import render_markdown
from opd_lab.pairs.changed_runs import changed_runs, followed
from opd_lab.pairs.design import REPEAT
from opd_lab.pairs.judging import judge_outcomes
from opd_lab.pairs.page_parts import changes_section, repeats_sections
from opd_lab.pairs.records import load_outcomes, load_rows
from opd_lab.pairs.repeats import Repeat, load_repeats, repeatability
from support.check_features import RUN

ROW = {"index": 0, "weights": {"student": "a"}}


@pytest.fixture(scope="module")
def fresh():
    """Runs of fresh seeds as the shipped forecast judges them."""
    return judge_outcomes(load_model(), load_outcomes("fresh"))


def test_verdicts_are_those_of_the_command(fresh):
    model = load_model()
    for case in fresh:
        outcome = case.outcome
        assert case.verdict == decide(model, outcome.features, outcome.run)[0]
    assert CHANGES in {case.verdict for case in fresh}


def with_advice(case, key, value, effect):
    advice = Advice("", {key: value}, Estimate(*effect, 9))
    return replace(case, verdict=CHANGES, changes=[advice])


def lengths(case, changes):
    """A run of 20 steps and of twice as many, with their changes of accuracy."""
    outcome = replace(case.outcome, before=0.2, teacher=0.9)
    runs = [replace(outcome.run, steps=steps) for steps in (20, 40)]
    return [
        replace(case, outcome=replace(outcome, run=run, after=0.2 + change))
        for run, change in zip(runs, changes, strict=True)
    ]


@pytest.mark.parametrize(("then", "right"), [(0.3, True), (0.01, False)])
def test_advice_to_run_longer_is_held_against_the_longer_run(fresh, then, right):
    short, long = lengths(fresh[0], (0.05, then))
    short = with_advice(short, "train.steps", 40, (0.4, 0.2, 0.5))
    (changed,) = changed_runs([replace(long, verdict=GO), short])
    assert changed.change == "train.steps=40"
    assert changed.outcome.change == pytest.approx(then)
    assert changed.right is right
    assert changed.inside is right
    text = render_markdown(Document("", "", [changes_section([short, long], [], [])]))
    assert ("| wrong |" in text) is not right
    assert text.count("train.steps=40") == 1


def test_advice_that_no_run_followed_is_counted_and_not_judged(fresh):
    short, long = lengths(fresh[0], (0.05, 0.3))
    beyond = with_advice(long, "train.steps", 80, (0.4, 0.2, 0.5))
    faster = with_advice(short, "optim.lr", 40, (0.4, 0.2, 0.5))  # not a number of steps
    changed = changed_runs([beyond, faster])
    assert [c.outcome for c in changed] == [None, None]
    assert [(c.right, c.inside) for c in changed] == [(None, None)] * 2
    text = render_markdown(Document("", "", [changes_section([beyond, faster], [], [])]))
    assert r"| other seeds, as shipped | 2 \(1\) | 0 \(0\) | 0 | 0 |" in text


def test_a_run_that_two_shorter_ones_were_advised_counts_once(fresh):
    short, long = lengths(fresh[0], (0.05, 0.3))
    longer = replace(long, outcome=replace(long.outcome, run=replace(RUN, steps=80), after=0.6))
    advised = [with_advice(c, "train.steps", 80, (0.4, 0.2, 0.5)) for c in (long, short)]
    (run,) = followed(changed_runs([*advised, longer]))
    assert (run.case.outcome.run.steps, run.outcome.run.steps) == (20, 80)
    text = render_markdown(Document("", "", [changes_section([*advised, longer], [], [])]))
    assert r"| other seeds, as shipped | 2 \(1\) | 1 \(1\) | 1 | 1 |" in text


def pack_repeats(folder, rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{REPEAT}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


def of_fit(case, steps):
    facts = {**case.outcome.facts, "block": "fit", **ROW}
    run = replace(case.outcome.run, steps=steps)
    return replace(case, outcome=replace(case.outcome, facts=facts, run=run))


def test_a_repeat_is_found_by_run_and_length(tmp_path, fresh):
    accuracy = {"before": [0.1, 0, 1], "teacher": [0.9, 0, 1], "20": [0.4, 0, 1], "40": [0.6, 0, 1]}
    pack_repeats(tmp_path, [ROW | {"accuracy": accuracy}, ROW | {"index": 1, "error": "refused"}])
    cases = [of_fit(fresh[0], 40), of_fit(fresh[0], 80), fresh[0]]
    (repeat,) = load_repeats(cases, tmp_path)
    assert repeat.case is cases[0]
    assert repeat.again == pytest.approx(0.5)
    assert load_repeats(cases, tmp_path / "none") == []


def test_a_repeat_with_other_weights_is_refused(tmp_path, fresh):
    changed = {"weights": {"student": "b"}, "accuracy": {"before": [0.1], "40": [0.2]}}
    pack_repeats(tmp_path, [ROW | changed])
    with pytest.raises(ValueError, match="other weights"):
        load_repeats([of_fit(fresh[0], 40)], tmp_path)


def test_the_recorded_repeats_are_of_the_study_s_models_and_settings():
    first = {row["index"]: row for row in load_rows("fit")}
    again = load_rows(REPEAT)
    assert len(again) == len(first) == 140
    for row in again:
        same = first[row["index"]]
        for name in ("weights", "changes", "world", "student", "teacher", "model_seed"):
            assert row[name] == same[name]
        assert row["seed"] != same["seed"]
        assert row["accuracy"].keys() == same["accuracy"].keys()
        assert len(row["commit"]) == 40


def test_limits_are_those_of_a_forecast_that_knows_all_but_chance(fresh):
    """Two runs whose changes are a common value and noise, against that common value."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 0.2, 400)
    first, again = (common + rng.normal(0, 0.1, len(common)) for _ in range(2))
    world = replace(fresh[0].outcome, before=0.0)
    cases = []
    for i, value in enumerate(first):
        facts = {**world.facts, "index": i}
        cases.append(replace(fresh[0], outcome=replace(world, facts=facts, after=value)))
    pairs = zip(cases, again, strict=True)
    *_, whole = repeatability([Repeat(case, value) for case, value in pairs])
    assert whole.best_error == pytest.approx(np.abs(first - common).mean(), rel=0.1)
    known = np.corrcoef(common, first)[0, 1]
    assert whole.best_correlation == pytest.approx(known, abs=0.04)
    assert whole.again.low < 0.8 < whole.again.high  # what 400 independent trainings tell
    assert whole.again.high - whole.again.low < 0.12


def test_lengths_of_a_training_are_resampled_together(fresh):
    """Eight runs of two trainings tell no more than the two."""
    cases = [lengths(fresh[0], (0.1, 0.1))[0], lengths(fresh[0], (0.3, 0.3))[0]]
    repeats = []
    for index, case in enumerate(cases):
        facts = {**case.outcome.facts, "index": index}
        outcome = replace(case.outcome, facts=facts)
        again = outcome.change + (0.0, 0.2)[index]
        repeats += [Repeat(replace(case, outcome=outcome), again)] * 4
    *_, whole = repeatability(repeats)
    assert (whole.runs, whole.trainings) == (8, 2)
    assert whole.difference.value == pytest.approx(0.1)
    assert (whole.difference.low, whole.difference.high) == pytest.approx((0.0, 0.2))
    (section,) = repeats_sections(repeats)
    assert "| all | 8 (2) |" in render_markdown(Document("", "", [section])).replace("\\", "")


def test_a_world_without_a_correlation_comes_last(fresh):
    flat = replace(fresh[0].outcome, facts={**fresh[0].outcome.facts, "world": "aa"})
    repeats = [Repeat(case, case.outcome.change) for case in fresh[:80]]
    repeats += [Repeat(replace(fresh[0], outcome=flat), 0.1)] * 3
    assert [a.label for a in repeatability(repeats)][-2:] == ["aa", "all"]
