"""Batches are consecutive examples of an endless sequence of permutations, whatever their size."""

from __future__ import annotations

import numpy as np
import pytest

from opd.data.order import batch_indices
from opd.rng import Stream


def epochs_of(count, size, steps, **options):
    options = {"seed": 3, "stream": Stream.SFT_ORDER} | options
    row = [i for step in range(steps) for i in batch_indices(count, size, step, **options)]
    return row, [row[start : start + count] for start in range(0, len(row) - count + 1, count)]


@pytest.mark.parametrize("size", [1, 4, 10, 23])
def test_every_epoch_is_a_permutation_of_its_own(size):
    _, epochs = epochs_of(10, size, 60)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_row_does_not_depend_on_the_batch_size():
    assert epochs_of(10, 5, 6)[0] == epochs_of(10, 30, 1)[0]


def test_seed_and_stream_decide():
    first = epochs_of(10, 5, 4)[0]
    assert epochs_of(10, 5, 4)[0] == first
    assert epochs_of(10, 5, 4, seed=4)[0] != first
    assert epochs_of(10, 5, 4, stream=Stream.PROMPT_ORDER)[0] != first


def test_the_numbers_are_those_of_the_documented_key():
    """(seed, stream, epoch) through Philox: orders of runs that have begun stay as they are."""
    key = np.random.SeedSequence((3, 16, 1))
    second = np.random.Generator(np.random.Philox(key)).permutation(10)
    assert batch_indices(10, 10, 1, seed=3, stream=Stream.SFT_ORDER) == second.tolist()
    assert batch_indices(10, 7, 1, seed=3, stream=Stream.SFT_ORDER) == [7, 1, 4, 9, 6, 5, 1]
    assert batch_indices(10, 7, 1, seed=3, stream=Stream.PROMPT_ORDER) == [8, 9, 7, 6, 4, 0, 5]
