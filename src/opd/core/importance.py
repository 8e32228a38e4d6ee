"""Weights for rollouts of an earlier student, with which the gradient stays the stated one.

A loss is a mean over prefixes that the student of now would sample. Those of another one count by
the ratio of the two probabilities (importance sampling). The ratio is truncated: that bounds the
variance, at the price of a bias towards prefixes that were likely before.
Shapes: T completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opd.types import Mean, Metrics

CLIP = 2.0  # largest weight: no prefix counts more than twice
_LARGEST = 300.0  # of a log-ratio; exp of twice that is still finite in float64


def prefix_log_ratios(now: np.ndarray, then: np.ndarray, *, own_token: bool) -> np.ndarray:
    """Log of p_now / p_then of what was written before each token, float64 (T,).

    Args:
        now: (T,) log-probs of the sampled tokens under the student of now, nats.
        then: (T,) those under the student that sampled them, at the same temperature.
        own_token: whether the token itself counts as well, for a loss that is estimated from it;
            a loss over several tokens is exact once its prefix is given.
    """
    step = now.astype(np.float64) - then.astype(np.float64)
    ratios: np.ndarray = np.cumsum(step) if own_token else np.cumsum(step) - step
    return ratios


def importance_weights(log_ratios: np.ndarray, *, clip: float = CLIP) -> np.ndarray:
    """min(clip, ratio) from log-ratios (T,), float32 (T,)."""
    weights: np.ndarray = np.exp(np.minimum(log_ratios, np.log(clip))).astype(np.float32)
    return weights


def importance_metrics(log_ratios: Sequence[np.ndarray], *, clip: float = CLIP) -> Metrics:
    """Mean weight, fraction of truncated ones, and effective sample size of the ratios.

    The effective sample size is (sum r)^2 / (N sum r^2) of the N untruncated ratios r of a step, in
    (0, 1]: 1 where all prefixes count alike.
    """
    ratios = np.concatenate([*log_ratios, np.zeros(0)])
    count = len(ratios)
    if not count:
        return {}
    weights = np.exp(np.clip(ratios - ratios.max(), -_LARGEST, 0.0))
    ess = float(weights.sum() ** 2 / np.square(weights).sum())
    return {
        "ahead/weight": Mean(float(importance_weights(ratios, clip=clip).sum(dtype=float)), count),
        "ahead/clipped": Mean(int((ratios > np.log(clip)).sum()), count),
        "ahead/ess": Mean(ess, count),
    }
