"""Rates are chosen by validation, budgets hold, and the page says no more than the records."""

from __future__ import annotations

import pytest

from opd_lab.tuned.choice import choose, difference, over_seeds, plain_budget, seeds_of
from opd_lab.tuned.page import word, write_page
from opd_lab.tuned.regimes import ARMS, OPD_RATES, SFT_RATES, TEACHER
from opd_lab.tuned.study import Record, read_records, settings
from opd_lab.tuned.training import Point, Setting

SETS = ("validation", "test", "other-depth", "echo")
TEACHER_SHARE = {"OPD": 0.1, "SFT": 0.5, "SFT, then OPD": 0.3}
SECONDS_PER_TOKEN = {"OPD": 0.02, "SFT": 0.01, "SFT, then OPD": 0.015}


def points(arm, best, ends=(0, 50, 100, 200)):
    """A student that has `best` at the end; its test accuracy is .1 below its validation."""
    found = []
    for tokens in ends:
        accuracy = best * tokens / ends[-1]
        seconds = tokens * SECONDS_PER_TOKEN.get(arm, 0.1)
        values = {name: accuracy - 0.1 * (name != "validation") for name in SETS}
        found.append(Point(tokens, tokens, seconds, TEACHER_SHARE.get(arm, 0.0) * seconds, values))
    return tuple(found)


def study(seeds=(1, 2, 3), regime="same"):
    """Records in which the middle rate is the best of every arm."""
    made = []
    for seed in seeds:
        top = Point(0, 0.0, 0.0, 0.0, dict.fromkeys(SETS, 1.0))
        made.append(Record(Setting(regime, TEACHER, 0, seed), "hash", seed, (top,)))
        for arm in ARMS:
            for number in range(3):
                best = 0.6 + 0.01 * seed + 0.2 * (number == 1) + 0.05 * (arm == "SFT")
                ends = (0, 50, 100) if arm == "OPD" else (0, 50, 100, 200)
                setting = Setting(regime, arm, number, seed)
                made.append(Record(setting, "hash", seed, points(arm, best, ends)))
    return made


def test_every_arm_is_tried_at_as_many_rates():
    (planned,) = settings(["same"], [1])
    counts = {arm: sum(one.arm == arm for one in planned) for arm in ARMS}
    assert set(counts.values()) == {len(OPD_RATES)} == {len(SFT_RATES)}
    assert len(OPD_RATES) >= 3


def test_the_rate_is_chosen_by_validation_and_not_by_the_test_set():
    records = study()
    rival = next(i for i, r in enumerate(records) if r.setting == Setting("same", "OPD", 0, 1))
    last = records[rival].points[-1]
    better = {**last.accuracy, "test": 1.0}  # the best on the test set, not on validation
    changed = (*records[rival].points[:-1], Point(100, 100, 2.0, 0.2, better))
    records[rival] = Record(records[rival].setting, "hash", 1, changed)
    chosen = choose(records, "same", "OPD", 1, "equal tokens")
    assert chosen.rate == OPD_RATES[1]
    assert chosen.point.accuracy["test"] == pytest.approx(0.71)
    assert not chosen.edge


def test_budgets_cut_every_arm_where_plain_training_ends():
    records = study()
    at = {b: choose(records, "same", "SFT", 1, b).point for b in ("equal tokens", "equal seconds")}
    assert at["equal tokens"].tokens == 100
    assert at["equal seconds"].tokens == 200  # a supervised step takes half of the time
    assert choose(records, "same", "SFT", 1, "half of the tokens").point.tokens == 50
    assert choose(records, "same", "recipe: auto", 1, "equal seconds") is None  # it takes longer


def test_a_dear_teacher_shortens_what_it_has_to_write():
    records = study()
    # 100 tokens on-policy take 2 s, .2 of them the teacher's; at a price of 100 that is 21.8.
    assert plain_budget(records, "same", 1, 100) == pytest.approx(2 + 99 * 0.2)
    # 50 supervised tokens take .5 s, half of them the teacher's: 25.25.
    assert choose(records, "same", "SFT", 1, "equal seconds", 100) is None
    # 100 tokens on-policy at a price of 10 take 3.8; 50 supervised ones 2.75, 100 of them 5.5.
    assert choose(records, "same", "SFT", 1, "equal seconds", 10).point.tokens == 50


def test_seeds_that_are_not_whole_are_left_out():
    records = study()
    assert seeds_of(records[:-1], "same", "recipe: auto") == [1, 2]
    assert len(over_seeds(records[:-1], "same", "recipe: auto", "equal tokens")) == 2
    assert seeds_of(records, "few", "OPD") == []


def test_a_difference_is_called_one_only_beyond_its_interval():
    assert word(difference(study(), "same", "half of the tokens")) == "OPD ahead"
    assert word(difference(study((1,)), "same", "equal tokens")) == "not known"
    assert word(None) == "not known"


def test_records_survive_their_file_and_make_a_page(tmp_path):
    import json

    path = tmp_path / "tuned.jsonl"
    path.write_text("".join(json.dumps(record.row()) + "\n" for record in study()))
    read = read_records(path)
    assert [r.setting for r in read] == [r.setting for r in study()]
    text = write_page(read, tmp_path, {"Command": "opd lab tuned"}).read_text()
    assert "opd lab tuned" in text
    assert "0.710, 0.720, 0.730" in text  # OPD at equal tokens, by seed
    assert "not measured" in text  # recipe: auto at equal seconds
    assert (tmp_path / "opd-or-sft" / "accuracy.png").is_file()


def test_a_run_stops_where_one_step_more_would_not_fit_into_its_seconds(monkeypatch):
    from threading import Event

    from opd_lab.tuned import auto

    now = [0.0]
    monkeypatch.setattr(auto.time, "process_time", lambda: now[0])
    stop = Event()
    clock = auto.BudgetClock(10.0, stop)
    for step in range(1, 4):
        for phase, seconds in (("rollout", 1.0), ("update", 2.0), ("evaluate", 50.0)):
            with clock(phase):
                now[0] += seconds
        # Three seconds a step: the third ends at 9, and a fourth would end at 12.
        assert stop.is_set() == (step == 3)
    assert clock.spent == pytest.approx(9.0)


def test_auto_is_run_for_each_budget_and_its_points_are_in_order(monkeypatch, tmp_path):
    from types import SimpleNamespace

    from opd_lab.tuned import auto

    asked = []

    def configured(place, rate, steps, scratch):
        assert scratch.is_dir()
        return {"rate": rate, "steps": steps}

    def train(place, data, budget):
        assert (data["rate"], data["recipe"]) == (2e-3, "auto")
        asked.append((data["steps"], budget.tokens, budget.seconds))
        tokens = min(budget.tokens, budget.seconds * 300)  # 300 per second
        return Point(data["steps"], tokens, tokens / 300, 0.0, {}, check_seconds=1.0)

    monkeypatch.setattr(auto, "on_policy_config", configured)
    monkeypatch.setattr(auto, "train_within", train)
    start = Point(0, 0.0, 0.0, 0.0, {})
    place = SimpleNamespace(regime=SimpleNamespace(steps=32), start=start)
    points = auto.train_auto(place, 2e-3, auto.Budget(1000.0, 2.0), tmp_path)
    inf = float("inf")
    assert asked == [(16, 500.0, inf), (32, 1000.0, inf), (32, inf, 2.0)]
    assert [point.tokens for point in points] == [0, 500, 600, 1000]
    budgets = ["", "half of the tokens", "equal seconds", "equal tokens"]
    assert [point.budget for point in points] == budgets


def test_a_run_for_one_budget_is_no_student_of_another():
    records = study((1,))
    auto = next(i for i, r in enumerate(records) if r.setting.arm == "recipe: auto")
    values = dict.fromkeys(SETS, 0.9)
    start, *_ = records[auto].points
    points = [
        start,
        Point(3, 20, 1.9, 0.0, dict.fromkeys(SETS, 0.4), budget="equal seconds"),
        Point(9, 49, 1.8, 0.0, values, budget="half of the tokens"),
    ]
    for at in range(auto, auto + 3):
        records[at] = Record(records[at].setting, "hash", 1, tuple(points))
    assert choose(records, "same", "recipe: auto", 1, "equal seconds").point is points[1]
    assert choose(records, "same", "recipe: auto", 1, "half of the tokens").point is points[2]
    assert choose(records, "same", "recipe: auto", 1, "equal tokens") is None
