"""Weights with a floor under their effective sample size, and what a pilot's numbers are."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from opd.core.stats import Estimate
from opd.recipes.check.features import tilted_accuracy, weighted_accuracy
from opd.recipes.check.pilot import gradient_agreement, weight_square_sum
from opd.recipes.check.pilot_features import resampled_features, weighted_change
from opd.recipes.check.probe import Answers
from opd.recipes.check.settings import RunSettings
from opd.recipes.check.weights import MAX_WEIGHT, effective_samples, temper
from opd.training.int8_moments import new_state, step_weight

SETTINGS = RunSettings(
    steps=10,
    lr=1e-3,
    warmup=4,
    prompts_per_step=4,
    responses=2,
    max_new_tokens=8,
    weight_decay=0.0,
    lora_rank=0,
    parameters=100,
    trained_parameters=100,
    rollout_temperature=1.0,
    eval_temperature=0.7,
    eval_top_p=0.95,
)


def test_weights_that_are_even_enough_stay_as_they_are():
    logs = np.log([1.0, 2.0, 3.0])
    weights, exponent = temper(logs)
    assert exponent == 1.0
    assert weights == pytest.approx([0.5, 1.0, 1.5])


@pytest.mark.parametrize("size", [16, 512])
def test_no_sample_counts_more_than_a_few_average_ones(size):
    logs = np.full(size, -40.0)
    logs[3] = 0.0
    weights, exponent = temper(logs)
    assert exponent < 1
    assert weights.max() == pytest.approx(MAX_WEIGHT, rel=1e-6)
    assert effective_samples(weights) >= size / MAX_WEIGHT


def test_one_right_answer_of_512_gives_no_hope():
    correct, reward = np.zeros((256, 2)), np.full((256, 2), -3.0)
    correct[7, 1], reward[7, 1] = 1.0, -0.01  # the only answer that the student finds likely
    contributions, effective = weighted_accuracy(correct, reward)
    assert contributions.mean() < 0.01  # without a floor: 0.99
    assert effective >= 128


def test_half_of_a_prompts_samples_count_in_a_tilt():
    correct = np.array([[1.0, 0.0, 0.0, 0.0]])
    assert tilted_accuracy(correct, np.array([[500.0, 0.0, 0.0, 0.0]])) <= 0.5 + 1e-6


def test_a_weighted_change_is_that_of_importance_sampling():
    rng = np.random.default_rng(0)
    correct = (rng.random((400, 4)) < 0.3).astype(float)
    moved = 0.2 * correct
    weights = np.exp(moved)
    expected = (weights * correct).sum() / weights.sum() - correct.mean()
    estimate = weighted_change(correct, moved)
    assert estimate.value == pytest.approx(expected, abs=1e-12)
    assert estimate.low < expected < estimate.high
    assert weighted_change(correct, 0 * moved).value == 0.0


def test_a_weighted_change_stays_possible():
    correct = np.zeros((50, 2))
    correct[0, 0] = 1.0
    estimate = weighted_change(correct, 1000 * correct)
    assert -0.01 <= estimate.value <= 0.99
    assert isinstance(estimate, Estimate)


def gradients_agree(gradients):
    weight = torch.nn.Parameter(torch.zeros(len(gradients[0])))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, betas=(0.9, 0.999))
    for gradient in gradients:
        weight.grad = torch.as_tensor(gradient, dtype=torch.float32)
        optimizer.step()
    return gradient_agreement(optimizer)


def test_equal_gradients_agree_and_noise_does_not():
    rng = np.random.default_rng(1)
    one = rng.normal(size=4000)
    assert gradients_agree([one] * 4) == pytest.approx(1.0, abs=1e-3)
    assert gradients_agree([rng.normal(size=4000) for _ in range(4)]) == pytest.approx(0, abs=0.05)
    assert np.isnan(gradients_agree([one]))
    assert weight_square_sum(1) == 1.0


def test_the_path_of_a_run_is_the_sum_of_its_rates():
    assert SETTINGS.path() == pytest.approx(1e-3 * (0.25 + 0.5 + 0.75 + 7))
    assert SETTINGS.path(2) == pytest.approx(1e-3 * 0.75)
    assert SETTINGS.path(99) == SETTINGS.path()
    assert RunSettings.of_record(SETTINGS.record()) == SETTINGS


def test_a_fraction_that_is_cut_off_stays_a_fraction():
    """One of four answers: Student's interval reached below none of them and above all."""
    lengths, cut = np.full((4, 1), 8), np.array([[0.0], [1.0], [0.0], [0.0]])
    before, after = Answers(None, lengths, np.zeros((4, 1))), Answers(None, lengths, cut)
    share = resampled_features(before, after)["pilot_truncated"]
    assert share.value == 0.25
    assert 0 <= share.low < share.value < share.high <= 1


def test_gradients_agree_as_much_where_moments_have_8_bits():
    """The levels were taken for the moments: that of equal gradients was 2.3."""
    rng = np.random.default_rng(1)
    one = rng.normal(size=5000)
    for gradients in ([one] * 4, [rng.normal(size=5000) for _ in range(4)]):
        weight = torch.nn.Parameter(torch.zeros(5000))
        optimizer, state = Mock(), new_state(weight)
        group = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
        for gradient in gradients:
            step_weight(weight.data, torch.as_tensor(gradient, dtype=torch.float32), state, group)
        optimizer.state = {weight: state}
        assert gradient_agreement(optimizer) == pytest.approx(gradients_agree(gradients), abs=0.05)
