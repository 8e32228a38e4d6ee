"""Importance weights that never let a handful of samples speak for all of them."""

from __future__ import annotations

import numpy as np

# No sample counts more than so many average ones. Kish's effective sample size is then at least
# this fraction of the samples: (sum w)^2 / sum w^2 >= n mean(w) / max(w).
MAX_WEIGHT = 4.0
_HALVINGS = 40  # of the search for the exponent


def effective_samples(weights: np.ndarray) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def temper(
    log_weights: np.ndarray, max_weight: float = MAX_WEIGHT
) -> tuple[np.ndarray, np.ndarray]:
    """Weights exp(a l) with the largest exponent a <= 1 at which none is too heavy.

    Args:
        log_weights: (..., n) l; the last axis holds the samples that are averaged.
        max_weight: largest weight over the mean weight.

    Returns:
        The weights (..., n), mean 1, and the exponents a (...).
    """
    scaled = log_weights - log_weights.max(-1, keepdims=True)

    def weights(exponent: np.ndarray) -> np.ndarray:
        raw: np.ndarray = np.exp(exponent[..., None] * scaled)
        raw /= raw.mean(-1, keepdims=True)
        return raw

    low, high = np.zeros(scaled.shape[:-1]), np.ones(scaled.shape[:-1])
    low = np.where(weights(high).max(-1) <= max_weight, 1.0, low)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fits = weights(middle).max(-1) <= max_weight
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return weights(low), low
