"""The paper's diagnostics on rollouts of either model, averaged per rollout and quarter of it.

Shapes: R rollouts, N completion tokens, V vocabulary, Q quarters of a completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from opd.core import diagnostics
from opd.core.batch import pad_rows, predicting_positions
from opd.core.chunked import chunk_slices
from opd.core.diagnostics import Measure, TopK
from opd.core.distributions import DenseDistribution
from opd.core.microbatches import token_batches
from opd.models.lm import LM
from opd.samplers.decoding import Decoding
from opd.types import Rollout, Scores

QUARTERS = 4


@dataclass(frozen=True)
class Diagnosis:
    """Diagnostics of a policy and a scorer on the policy's rollouts.

    Attributes:
        mean: metric name to (R,), mean over a rollout's tokens; NaN where undefined.
        quarter: metric name to (R, Q), the same over each quarter of it.
    """

    mean: dict[str, np.ndarray]
    quarter: dict[str, np.ndarray]

    def __add__(self, other: Diagnosis) -> Diagnosis:
        """Diagnostics of both lists of rollouts, one after the other."""
        return Diagnosis(
            *(
                {name: np.concatenate([ours[name], theirs[name]]) for name in ours}
                for ours, theirs in ((self.mean, other.mean), (self.quarter, other.quarter))
            )
        )


@torch.no_grad()
def diagnose(
    policy: LM, scorer: LM, rollouts: Sequence[Rollout], *, k: int, tokens_per_batch: int
) -> Diagnosis:
    """Every metric of `opd.core.diagnostics.full_metrics`, p being the policy and q the scorer.

    Args:
        policy: generated the rollouts; "student" in the metric names.
        scorer: the other model; "teacher" in the metric names.
        rollouts: R rollouts, none of them empty.
        k: support size (paper: 16).
        tokens_per_batch: padded tokens per forward pass.
    """
    rows: list[np.ndarray] = []
    quarters: list[np.ndarray] = []
    totals: dict[str, list[np.ndarray]] = {}
    counts: dict[str, list[np.ndarray]] = {}
    lengths = [len(r.prompt.ids) + len(r) for r in rollouts]
    for batch in token_batches(lengths, tokens_per_batch):
        for metrics in _chunks(policy, scorer, [rollouts[i] for i in batch], k):
            for name, measure in metrics.items():
                totals.setdefault(name, []).append(measure.total.double().cpu().numpy())
                counts.setdefault(name, []).append(measure.n.double().cpu().numpy())
        for i in batch:
            rows.append(np.full(len(rollouts[i]), i))
            quarters.append(np.arange(len(rollouts[i])) * QUARTERS // len(rollouts[i]))
    return _means(np.concatenate(rows), np.concatenate(quarters), len(rollouts), totals, counts)


def _chunks(
    policy: LM, scorer: LM, rollouts: Sequence[Rollout], k: int
) -> Iterator[dict[str, Measure]]:
    """The metrics of one padded batch, a chunk of its completion tokens at a time."""
    ids = pad_rows([[*r.prompt.ids, *r.ids.tolist()] for r in rollouts])
    predicting = [predicting_positions(len(r.prompt.ids), len(r)) for r in rollouts]
    states = []
    for lm in (policy, scorer):
        hidden = lm.hidden(ids.to(lm.device))
        states.append(torch.cat([hidden[row, span] for row, span in enumerate(predicting)]))
    targets = torch.cat([torch.from_numpy(r.ids).long() for r in rollouts]).to(policy.device)
    for chunk in chunk_slices(len(targets), 2 * policy.vocab, policy.device):  # logits of both
        p = DenseDistribution(policy.head.logits(states[0][chunk])).log_probs()
        q = DenseDistribution(scorer.head.logits(states[1][chunk])).log_probs().to(p.device)
        yield diagnostics.full_metrics(p, q, k=min(k, policy.vocab), targets=targets[chunk])


def diagnosis_of_measures(measures: Sequence[dict[str, Measure]]) -> Diagnosis:
    """A diagnosis from metrics per position: one dict per rollout, R of them, none empty."""
    lengths = [len(next(iter(metrics.values())).total) for metrics in measures]
    parts: list[dict[str, list[np.ndarray]]] = [{}, {}]
    for metrics in measures:
        for name, measure in metrics.items():
            for part, values in zip(parts, measure, strict=True):
                part.setdefault(name, []).append(values.double().cpu().numpy())
    rows = np.repeat(np.arange(len(lengths)), lengths)
    quarters = np.concatenate([np.arange(n) * QUARTERS // n for n in lengths])
    return _means(rows, quarters, len(lengths), *parts)


def diagnosis_of_scores(
    policy: Sequence[Scores], scorer: Sequence[Scores], decoding: Decoding
) -> Diagnosis:
    """What scores of the policy's rollouts by both tell: reward, KL, and overlap of the top k.

    Args:
        policy: scores by the model that sampled the rollouts.
        scorer: by the other one.
        decoding: of the rollouts: at temperature 1 the mean of -reward is the KL.
    """
    plain = decoding.temperature == 1.0 and decoding.top_p == 1.0
    measures = []
    for p, q in zip(policy, scorer, strict=True):
        assert p.sampled is not None
        assert q.sampled is not None
        reward = torch.from_numpy(q.sampled - p.sampled)
        measure = {"diag/token_reward": Measure.of(reward)}
        if plain:
            measure["diag/reverse_kl"] = Measure.of(-reward)
        tops = [
            (s.topk_ids, s.topk_logp)
            for s in (p, q)
            if s.topk_ids is not None and s.topk_logp is not None
        ]
        if len(tops) == 2:
            k = min(ids.shape[1] for ids, _ in tops)
            lists = (
                TopK(torch.from_numpy(ids[:, :k]).long(), torch.from_numpy(logp[:, :k]))
                for ids, logp in tops
            )
            measure |= diagnostics.topk_metrics(*lists)
        measures.append(measure)
    return diagnosis_of_measures(measures)


def _means(
    rows: np.ndarray,
    quarters: np.ndarray,
    count: int,
    totals: dict[str, list[np.ndarray]],
    counts: dict[str, list[np.ndarray]],
) -> Diagnosis:
    """Sums over count of each rollout and quarter; `rows` and `quarters` say where a token is."""
    cells = rows * QUARTERS + quarters
    mean, quarter = {}, {}
    for name in totals:
        value, weight = (np.concatenate(parts[name]) for parts in (totals, counts))
        sums = [np.bincount(cells, x, count * QUARTERS).reshape(count, -1) for x in (value, weight)]
        with np.errstate(invalid="ignore"):  # 0/0: the metric is undefined there
            quarter[name] = sums[0] / sums[1]
            mean[name] = sums[0].sum(1) / sums[1].sum(1)
    return Diagnosis(mean, quarter)
