"""Lying teachers are detected, honest ones are not accused."""

from __future__ import annotations

import pytest

from support import lying_teachers as lying
from support.everyday import everyday


@pytest.mark.parametrize("name", [n for n in lying.LIES if n not in lying.ONLY_LATER])
def test_a_lying_teacher_fails_the_handshake(name):
    assert lying.detect_at_handshake(name) is not None


@pytest.mark.parametrize("name", [n for n in lying.LIES if n not in lying.ONLY_EARLY])
def test_a_teacher_that_begins_to_lie_is_detected(name):
    assert lying.detect_later(name) is not None


def test_a_temperature_that_is_not_applied_is_detected():
    assert lying.detect_temperature(applies=False) is not None
    assert lying.detect_temperature(applies=True) is None


def test_swapped_rows_of_a_batch_are_detected():
    assert lying.detect_swap(swaps=True) is not None
    assert lying.detect_swap(swaps=False) is None


@pytest.mark.parametrize("seed", everyday(range(0, 200, 10), 0, 7, 13, 19))
def test_honest_teachers_are_not_accused(seed):
    accused = [lying.false_alarms(s) for s in range(seed, seed + 10)]
    assert accused == [[]] * 10
