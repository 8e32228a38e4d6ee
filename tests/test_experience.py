"""What a step's batch is made of, besides rollouts and scores."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from opd.core.objective import Objective
from opd.teachers.remote import TeacherDown, set_positions
from opd.training.experience import (
    choose_positions,
    outcome_advantages,
    request_scores,
    special_weights,
)
from opd.types import Prompt, Rollout, Scores


def completions(*ids):
    return [SimpleNamespace(ids=np.array(x, dtype=np.int32)) for x in ids]


def test_special_tokens_carry_no_loss_and_the_stop_token_does():
    source = SimpleNamespace(
        special=torch.tensor([0, 1, 2], dtype=torch.int32),
        stop=torch.tensor([1], dtype=torch.int32),
    )
    found = special_weights(source, completions([5, 0, 7, 1], [2], []))
    assert [x.tolist() for x in found] == [[1, 0, 1, 1], [0], []]


def test_outcome_advantages_are_z_scores_within_each_group():
    found = outcome_advantages(np.array([1.0, 0, 0, 0, 1, 1, 1, 1]), 4)
    assert found[:4] == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert found[4:].tolist() == [0, 0, 0, 0]  # nothing to tell apart


@pytest.mark.parametrize("count", [0, 1, 5, 9, 100])
def test_diagnosed_positions_are_distinct_and_inside_their_rollouts(count):
    rollouts = [np.zeros(n) for n in (3, 0, 6, 1)]
    found = choose_positions(rollouts, count, 0, 7)
    assert [len(set(x.tolist())) == len(x) for x in found] == [True] * 4
    assert sum(map(len, found)) == min(count, 10)
    assert all((x >= 0).all() and (x < len(r)).all() for x, r in zip(found, rollouts, strict=True))
    again = choose_positions(rollouts, count, 0, 7)
    assert all((a == b).all() for a, b in zip(found, again, strict=True))


def test_every_position_is_as_likely_as_any_other():
    rollouts = [np.zeros(n) for n in (2, 8)]
    hits = np.zeros(10)
    for step in range(2000):
        first, second = choose_positions(rollouts, 3, 0, step)
        hits[first] += 1
        hits[2 + second] += 1
    # 600 expected each, standard deviation 20: five of them either way
    assert (abs(hits - 600) < 100).all()


def test_scores_from_before_a_server_went_away_are_diagnosed_where_all_would_have_been():
    """What was saved then has no positions: the numbers of the step would be of the rest alone."""

    class Server:
        down = True

        def score(self, rollouts, want):
            scores = [Scores(sampled=np.zeros(len(r), dtype=np.float32)) for r in rollouts]
            if self.down:
                self.down = False
                raise TeacherDown("away", [scores[0], *[None] * (len(scores) - 1)])
            return set_positions(scores, want)

    size = SimpleNamespace(diagnosed_positions=5, seed=0, kept_rollouts=0)
    source = SimpleNamespace(teacher=Server(), size=size, pruning=None)
    rollouts = [Rollout.of_ids(Prompt(i, (1,), ""), [2, 3, 4]) for i in range(3)]
    with pytest.raises(TeacherDown) as down:
        request_scores(source, Objective(), 7, rollouts, None)
    known = [score or Scores() for score in down.value.partial]
    scores = request_scores(source, Objective(), 7, rollouts, known)
    wanted = choose_positions(rollouts, 5, 0, 7)
    assert [s.positions.tolist() for s in scores] == [x.tolist() for x in wanted]
