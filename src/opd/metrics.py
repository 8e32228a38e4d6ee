"""Diagnostics on plain tensors, for a training loop of your own; meanings in docs/metrics.md.

`full_metrics` measures two whole distributions at completion positions, `topk_metrics` and
`overlap_metrics` what two top-k lists tell. Each returns a `Measure` by name: one value per
position and its weight; `overall` makes means of them.

>>> import torch
>>> from opd import metrics
>>> mine, theirs = torch.arange(384.0).sin().reshape(2, 6, 32).log_softmax(-1)  # 6 positions
>>> bool(torch.allclose(metrics.entropy(mine), -(mine.exp() * mine).sum(-1)))
True
>>> tops = [metrics.TopK(*reversed(x.topk(8))) for x in (mine, theirs)]
>>> means = metrics.overall(metrics.overlap_metrics(*tops))
>>> shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(tops[0].ids, tops[1].ids)]
>>> means["diag/overlap_ratio"].value == sum(shared) / (6 * 8)
True
>>> metrics.repetition([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4])  # share of repeated 4-grams
0.5555555555555556
"""

from opd.core.diagnostics import (
    Measure,
    TopK,
    distinct_ngrams,
    drift_metrics,
    entropy,
    full_metrics,
    overall,
    overlap_metrics,
    repetition,
    topk_metrics,
)
from opd.core.stats import (
    Estimate,
    Paired,
    auroc,
    avg_at_n,
    difference_of_means,
    gap_recovery,
    mean,
    paired,
    pass_at_k,
)

__all__ = [
    "Estimate",
    "Measure",
    "Paired",
    "TopK",
    "auroc",
    "avg_at_n",
    "difference_of_means",
    "distinct_ngrams",
    "drift_metrics",
    "entropy",
    "full_metrics",
    "gap_recovery",
    "mean",
    "overall",
    "overlap_metrics",
    "paired",
    "pass_at_k",
    "repetition",
    "topk_metrics",
]
