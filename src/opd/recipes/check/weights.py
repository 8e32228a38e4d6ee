"""Importance weights that never let a handful of samples speak for all of them."""

from __future__ import annotations

import numpy as np

MIN_FRACTION = 0.25  # of the samples that must count, effectively
_HALVINGS = 40  # of the search for the exponent


def effective_samples(weights: np.ndarray) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def temper(log_weights: np.ndarray, min_fraction: float = MIN_FRACTION) -> tuple[np.ndarray, float]:
    """Weights exp(a l) with the largest exponent a <= 1 at which enough samples count.

    Args:
        log_weights: any shape.
        min_fraction: effective sample size to keep, as a fraction of the samples.

    Returns:
        The weights, largest 1, and the exponent a.
    """
    scaled = log_weights - log_weights.max()
    needed = min_fraction * scaled.size
    if effective_samples(np.exp(scaled)) >= needed:
        return np.exp(scaled), 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = effective_samples(np.exp(middle * scaled)) >= needed
        low, high = (middle, high) if enough else (low, middle)
    return np.exp(low * scaled), low
