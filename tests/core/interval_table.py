"""Simulated coverage of the 95% interval of a paired change.

Run as a script, it prints the table of docs/metrics.md. Prompts differ in difficulty: the accuracy
of each before training is drawn from a beta distribution, and training closes one fraction of every
prompt's distance to 1 (or loses one fraction of it). The samples of a prompt are independent given
its accuracy.
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
from scipy import stats as reference

from opd.core.stats import paired_change

PROMPTS, SAMPLES = (20, 40, 100, 400), (1, 4, 16)
CHANGES = ((0.02, 0.0), (0.1, 0.1), (0.1, 0.5), (0.1, 0.85), (0.5, 0.0), (0.5, 0.45), (0.9, -0.1))
CONCENTRATION = 1.5
SIMULATIONS = 2000


def simulate(before, change, prompts, samples, rng):
    """Per-prompt accuracies (P,) before and after training."""
    beta = before * CONCENTRATION, (1 - before) * CONCENTRATION
    ability = rng.beta(*beta, prompts)
    towards = ability + (1 - ability) * change / (1 - before)
    trained = towards if change >= 0 else ability * (1 + change / before)
    draws = [rng.binomial(samples, np.clip(x, 0, 1)) / samples for x in (ability, trained)]
    return draws[0], draws[1]


def coverage(before, change, prompts, samples, simulations=SIMULATIONS):
    """Fractions of simulated evaluations whose interval holds the change: ours, Student's t.

    The third number is the fraction of t intervals that leave [-1, 1].
    """
    rng = np.random.Generator(np.random.Philox([prompts, samples, int(1000 * before)]))
    hits, hits_t, outside = 0, 0, 0
    quantile = reference.t.ppf(0.975, prompts - 1)
    for _ in range(simulations):
        a, b = simulate(before, change, prompts, samples, rng)
        got = paired_change(a, b)
        assert -1 <= got.low <= got.value <= got.high <= 1
        hits += got.low - 1e-9 <= change <= got.high + 1e-9
        mean, half = (b - a).mean(), quantile * reference.sem(b - a)
        hits_t += abs(mean - change) <= half + 1e-9
        outside += abs(mean) + half > 1
    return hits / simulations, hits_t / simulations, outside / simulations


def table():
    """Lines of the table and of its summary."""
    yield (
        "| prompts | samples | "
        + " | ".join(f"{100 * a:g} {100 * c:+g}" for a, c in CHANGES)
        + " |"
    )
    yield "|---|---|" + "---|" * len(CHANGES)
    cells, cells_t = [], []
    for prompts, samples in itertools.product(PROMPTS, SAMPLES):
        row = []
        for before, change in CHANGES:
            ours, t, outside = coverage(before, change, prompts, samples)
            cells.append((prompts, ours))
            cells_t.append(t)
            impossible = f", {100 * outside:.0f}% out" if outside >= 0.005 else ""
            row.append(f"{100 * ours:.1f} ({100 * t:.1f}{impossible})")
        yield f"| {prompts} | {samples} | " + " | ".join(row) + " |"
    values, large = np.array([c for _, c in cells]), np.array([c for p, c in cells if p >= 40])
    for name, x in (("all", values), ("40 prompts or more", large), ("t", np.array(cells_t))):
        within = 100 * ((x >= 0.94) & (x <= 0.96)).mean()
        yield f"{name}: mean {100 * x.mean():.1f}%, lowest {100 * x.min():.1f}%, "
        yield f"{within:.0f}% of cells within 94 to 96%"


if __name__ == "__main__":
    for line in table():
        sys.stdout.write(line + "\n")
