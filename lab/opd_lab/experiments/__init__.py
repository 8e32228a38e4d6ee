"""The paper's findings as experiments: who learns from whom, what varies, what is claimed.

`all_experiments()` is the full lab, `quick_experiments()` the five that take three minutes,
`more_experiments()` are further ones on small models, run where they are named.
"""

from typing import Any

from opd_lab.experiments.advantage_sum import advantage_sum
from opd_lab.experiments.aligned_prompts import aligned_prompts
from opd_lab.experiments.cancellation import cancellation
from opd_lab.experiments.cold_start import cold_start
from opd_lab.experiments.continuation import continuation
from opd_lab.experiments.experiment import Experiment
from opd_lab.experiments.exploration import exploration
from opd_lab.experiments.family import family
from opd_lab.experiments.mechanism import mechanism
from opd_lab.experiments.new_capability import new_capability
from opd_lab.experiments.response_length import response_length
from opd_lab.experiments.reverse_distillation import reverse_distillation
from opd_lab.experiments.sequence_reward import sequence_reward
from opd_lab.experiments.setups import FULL_SETUP, QUICK_SETUP
from opd_lab.experiments.support_size import support_size
from opd_lab.experiments.supports import supports
from opd_lab.experiments.switch import switch
from opd_lab.experiments.template import template
from opd_lab.experiments.thinking_pattern import thinking_pattern
from opd_lab.experiments.token_horizon import token_horizon

__all__ = [
    "Experiment",
    "all_experiments",
    "experiments_of",
    "more_experiments",
    "quick_experiments",
]


def all_experiments() -> dict[str, Experiment[Any]]:
    """Every experiment of the lab by name."""
    experiments: list[Experiment[Any]] = [
        thinking_pattern(FULL_SETUP),
        new_capability(FULL_SETUP),
        reverse_distillation(FULL_SETUP),
        mechanism(FULL_SETUP),
        supports(FULL_SETUP),
        cold_start(),
        aligned_prompts(),
        response_length(),
        continuation(FULL_SETUP),
        sequence_reward(FULL_SETUP),
        support_size(),
        token_horizon(),
        exploration(),
    ]
    return {experiment.name: experiment for experiment in experiments}


def quick_experiments() -> dict[str, Experiment[Any]]:
    """The experiments of `--quick`: smaller models, teachers by supervised training."""
    makers = (thinking_pattern, new_capability, reverse_distillation, supports, continuation)
    experiments: list[Experiment[Any]] = [make(QUICK_SETUP) for make in makers]
    return {experiment.name: experiment for experiment in experiments}


def more_experiments() -> dict[str, Experiment[Any]]:
    """Further points of the paper and questions beside it, each a minute or two."""
    makers = (template, family, advantage_sum, cancellation, switch)
    experiments: list[Experiment[Any]] = [make() for make in makers]
    return {experiment.name: experiment for experiment in experiments}


def experiments_of(*, quick: bool) -> dict[str, Experiment[Any]]:
    """The experiments of one size that may be named."""
    return quick_experiments() if quick else all_experiments() | more_experiments()
