"""A comparison that used up its limit is remembered: hostile expressions are paid for once."""

from __future__ import annotations

import pytest

from opd.data.graders import make_grader
from opd.data.math_comparisons import ComparisonMemory, MathComparer, _Recent
from opd.data.math_sandbox import DIED

TOWER = r"9^{9^{9}}"
TIMED_OUT = (False, "timed out")


class FakeProcess:
    """Replies by a function of text and answer; time passes only where it says so."""

    def __init__(self, reply, clock):
        self.limit, self.reply, self.clock, self.asked = 5.0, reply, clock, []

    def start(self):
        pass

    def close(self):
        pass

    def compare(self, text, answer, *, marked):
        self.asked.append((text, answer))
        reason = self.reply(text, answer)
        self.clock.now += self.limit if reason == "timed out" else 0.01
        return reason == "equal", reason


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def comparer(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("opd.data.math_comparisons.time", clock)

    def make(reply):
        made = MathComparer(5.0, ComparisonMemory())
        made.process = FakeProcess(reply, clock)
        return made

    return make


def hostile(text, answer):
    return "timed out" if TOWER in (text, answer) else "not equal"


def test_a_hostile_ground_truth_is_tried_once_whatever_is_compared_with_it(comparer):
    made = comparer(hostile)
    reasons = [made.compare(str(i), TOWER, marked=True).reason for i in range(50)]
    assert made.process.clock.now == 5.0
    assert reasons[0] == "timed out"
    assert set(reasons[1:]) == {"timed out, as before with this ground truth"}


def test_beside_an_expression_a_hostile_ground_truth_is_found_with_one_more_try(comparer):
    made = comparer(hostile)
    for i in range(50):
        assert not made.compare(f"x+{i}", TOWER, marked=True).equal
    assert 10.0 <= made.process.clock.now < 10.1


def test_a_hostile_text_is_tried_once_for_all_prompts(comparer):
    made = comparer(hostile)
    for i in range(50):
        assert not made.compare(TOWER, str(i), marked=True).equal
    assert made.process.clock.now == 5.0
    made.compare(TOWER, "y", marked=True)
    assert made.compare("x", "y", marked=True).reason == "not equal"  # neither is blamed


def test_two_expressions_that_are_slow_only_together_blame_neither(comparer):
    made = comparer(lambda *pair: "timed out" if pair == ("a+b", "c+d") else "equal")
    assert made.compare("a+b", "c+d", marked=True) == TIMED_OUT
    spent = made.process.clock.now
    assert made.compare("a+b", "c+d", marked=True) == TIMED_OUT
    assert made.process.clock.now == spent  # remembered as a pair
    assert made.compare("a+b", "e", marked=True).equal
    assert made.compare("e", "c+d", marked=True).equal


def test_what_kills_the_child_twice_is_hostile_and_once_is_an_accident(comparer):
    deaths = iter([DIED, "equal"])
    made = comparer(lambda *pair: next(deaths))
    assert made.compare("x+1", "1+x", marked=True).equal
    made = comparer(lambda text, answer: DIED if answer == "y" else "not equal")
    for i in range(20):
        assert not made.compare(str(i), "y", marked=True).equal
    assert len(made.process.asked) == 2


def test_a_known_comparison_is_not_made_again(comparer):
    made = comparer(lambda *pair: "equal")
    for _ in range(5):
        assert made.compare("x+1", "1+x", marked=True).equal
    assert made.process.asked == [("x+1", "1+x")]


def test_the_memory_has_a_size_and_forgets_what_was_unused_for_longest():
    recent = _Recent(2)
    for key in "ab":
        recent.put(key, key)
    recent.get("a")
    recent.put("c", "c")
    assert [recent.get(key) for key in "abc"] == ["a", None, "c"]


@pytest.mark.slow
def test_graders_of_one_process_remember_a_real_tower_together():
    limit = 1.25  # a memory of its own
    with make_grader("math", ["x"], limit=limit) as grader:
        (first,) = grader.grade([r"\boxed{4}"], [TOWER])
        assert first.reason == "timed out" or first.reason.startswith(DIED)
    with make_grader("math", ["x"], limit=limit) as grader:
        grades = grader.grade([rf"\boxed{{{i}}}" for i in range(100)], [TOWER] * 100)
        assert not any(grade.correct for grade in grades)
        assert grader._comparer.process.starts == 0
