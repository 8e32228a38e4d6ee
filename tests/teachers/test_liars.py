"""Lying teachers are found, honest ones are not accused."""

from __future__ import annotations

import liars
import pytest


@pytest.mark.parametrize("name", [n for n in liars.LIES if n not in liars.ONLY_LATER])
def test_a_liar_fails_the_handshake(name):
    assert liars.found_at_handshake(name) is not None


@pytest.mark.parametrize("name", [n for n in liars.LIES if n not in liars.ONLY_EARLY])
def test_a_teacher_that_begins_to_lie_is_found(name):
    assert liars.found_later(name) is not None


def test_a_temperature_that_is_not_applied_is_found():
    assert liars.temperature_found(applies=False) is not None
    assert liars.temperature_found(applies=True) is None


def test_swapped_rows_of_a_batch_are_found():
    assert liars.swap_found(swaps=True) is not None
    assert liars.swap_found(swaps=False) is None


@pytest.mark.parametrize("seed", range(0, 200, 10))
def test_honest_teachers_are_believed(seed):
    accused = [liars.clean_run(s) for s in range(seed, seed + 10)]
    assert accused == [[]] * 10
