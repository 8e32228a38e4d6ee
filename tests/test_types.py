"""The records that every package shares."""

from dataclasses import fields

import numpy as np
import pytest

from opd.types import ALIGNMENT_FIELDS, SCORE_FIELDS, Prompt, Rollout, Scores, Want


def test_score_fields_are_all_the_arrays_with_a_row_per_token():
    assert {f.name for f in fields(Scores)} - set(SCORE_FIELDS) == {
        *("positions", "hidden", "view"),
        *ALIGNMENT_FIELDS,
    }


def test_arrays_are_those_that_are_there():
    scores = Scores(log_z=np.ones(2), topk_ids=np.zeros((2, 3)), positions=np.arange(2))
    assert list(scores.arrays()) == ["log_z", "topk_ids"]
    assert scores.arrays()["log_z"] is scores.log_z


@pytest.mark.parametrize(
    ("want", "expected"),
    [
        (Want(), set()),
        (Want(sampled=True, full=[]), {"sampled"}),
        (Want(support=True, topk=2), {"support", "topk_ids", "topk_logp"}),
    ],
)
def test_a_request_names_the_arrays_it_needs(want, expected):
    assert set(want.fields) == expected <= set(SCORE_FIELDS)


def test_a_rollout_of_given_ids():
    made = Rollout.of_ids(np.array([5, 6], np.int32), [7, 8, 1], finish="stop")
    assert (made.prompt, made.ids.tolist(), made.finish) == (
        Prompt(0, (5, 6), ""),
        [7, 8, 1],
        "stop",
    )
    assert (made.ids.dtype, made.topk_ids.shape, made.topk_logp.shape) == (np.int32, (3, 0), (3, 0))
    assert made.logp.tolist() == made.entropy.tolist() == [0, 0, 0]
    prompt = Prompt(3, (5,), "five")
    support = np.array([[1, 2], [3, 4]], np.int32)
    made = Rollout.of_ids(prompt, [7, 8], topk_ids=support)
    assert made.prompt is prompt
    assert made.topk_ids is support
    assert (made.topk_logp.shape, made.finish) == ((2, 2), "length")
