"""`opd check` and `opd select` under a grader of the user's that returns numbers."""

from __future__ import annotations

import numpy as np
import pytest

from opd.data.graders import FunctionGrader
from opd.errors import UserError
from opd.recipes.check.probe import ProbeConfig, ProbeModel, probe_student
from opd.recipes.select import MeasurementSetup, measure_prompts
from opd.samplers.decoding import Decoding
from opd.types import Prompt, Rollout

PROMPTS = [Prompt(i, (5, 6), "q", "a") for i in range(2)]


class Sampled:
    """A sampler of fixed rollouts."""

    def sample(self, prompts, n, **settings):
        return [Rollout.of_ids(p, [7, 8, 1], finish="stop") for p in prompts for _ in range(n)]


class Scorer:
    """A teacher whose scores are not looked at."""

    def score(self, rollouts, want):
        return []


def probed(reward):
    config = ProbeConfig(Decoding(4), str, FunctionGrader(lambda *_: reward, "python:g"), n=2)
    return probe_student(ProbeModel(None, frozenset(), lambda *_: Sampled()), PROMPTS, config)


@pytest.mark.parametrize("reward", [2.0, -1.0])
def test_a_reward_that_is_no_accuracy_is_refused(reward):
    """The check ended in a traceback of its statistics; select wrote accuracies of 200%."""
    with pytest.raises(UserError, match=rf"python:g returned {reward:g}\. .*from 0 to 1"):
        probed(reward)
    grader = FunctionGrader(lambda *_: reward, "python:g")
    setup = MeasurementSetup(Sampled(), None, Scorer(), grader, str, 2, 4)
    with pytest.raises(UserError, match="python:g returned"):
        measure_prompts(setup, PROMPTS, (0,))


def test_a_part_of_an_answer_may_be_right():
    np.testing.assert_array_equal(probed(0.5).correct, np.full((2, 2), 0.5))
