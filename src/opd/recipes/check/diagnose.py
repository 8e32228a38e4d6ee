"""The paper's diagnostics on rollouts of either model, a mean a rollout and quarter of it.

Shapes: R rollouts, N completion tokens, V vocabulary, Q quarters of a completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from opd.core import diagnostics
from opd.core.batch import pad_rows, predicting_positions
from opd.core.chunked import chunk_slices
from opd.core.diagnostics import Measure
from opd.core.distributions import DenseDistribution
from opd.core.microbatches import token_batches
from opd.models.lm import LM
from opd.types import Rollout

QUARTERS = 4


@dataclass(frozen=True)
class Diagnosis:
    """Diagnostics of a writer and a reader on the writer's rollouts.

    Attributes:
        mean: name to (R,), mean over a rollout's tokens; NaN where undefined.
        quarter: name to (R, Q), the same over each quarter of it.
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
    writer: LM, reader: LM, rollouts: Sequence[Rollout], *, k: int, tokens: int
) -> Diagnosis:
    """Everything of `opd.core.diagnostics.diagnose`, with p the writer's and q the reader's.

    Args:
        writer: wrote the rollouts; "student" in the names of the metrics.
        reader: reads them; "teacher" in the names.
        rollouts: none of them empty.
        k: support size (paper: 16).
        tokens: padded tokens a forward.
    """
    rows: list[np.ndarray] = []
    quarters: list[np.ndarray] = []
    totals: dict[str, list[np.ndarray]] = {}
    counts: dict[str, list[np.ndarray]] = {}
    lengths = [len(r.prompt.ids) + len(r) for r in rollouts]
    for part in token_batches(lengths, tokens):
        ids = pad_rows([[*rollouts[i].prompt.ids, *rollouts[i].ids.tolist()] for i in part])
        states = []
        for lm in (writer, reader):
            hidden = lm.hidden(ids.to(lm.device))
            states.append(
                torch.cat(
                    [
                        hidden[row, predicting_positions(len(r.prompt.ids), len(r))]
                        for row, r in enumerate(rollouts[i] for i in part)
                    ]
                )
            )
        targets = torch.cat([torch.from_numpy(rollouts[i].ids).long() for i in part])
        for chunk in chunk_slices(len(targets), writer.vocab):
            p = DenseDistribution(writer.head.full(states[0][chunk])).log_probs()
            q = DenseDistribution(reader.head.full(states[1][chunk])).log_probs().to(p.device)
            found = diagnostics.diagnose(
                p, q, k=min(k, writer.vocab), targets=targets[chunk].to(p.device)
            )
            for name, measure in found.items():
                totals.setdefault(name, []).append(measure.total.double().cpu().numpy())
                counts.setdefault(name, []).append(measure.n.double().cpu().numpy())
        for i in part:
            rows.append(np.full(len(rollouts[i]), i))
            quarters.append(np.arange(len(rollouts[i])) * QUARTERS // len(rollouts[i]))
    return _means(np.concatenate(rows), np.concatenate(quarters), len(rollouts), totals, counts)


def of_positions(found: Sequence[dict[str, Measure]]) -> Diagnosis:
    """A diagnosis from what is known at each position of R rollouts, none of them empty."""
    lengths = [len(next(iter(measures.values())).total) for measures in found]
    parts: list[dict[str, list[np.ndarray]]] = [{}, {}]
    for measures in found:
        for name, measure in measures.items():
            for part, values in zip(parts, measure, strict=True):
                part.setdefault(name, []).append(values.double().cpu().numpy())
    rows = np.repeat(np.arange(len(lengths)), lengths)
    quarters = np.concatenate([np.arange(n) * QUARTERS // n for n in lengths])
    return _means(rows, quarters, len(lengths), *parts)


def _means(
    rows: np.ndarray,
    quarters: np.ndarray,
    count: int,
    totals: dict[str, list[np.ndarray]],
    counts: dict[str, list[np.ndarray]],
) -> Diagnosis:
    cells = rows * QUARTERS + quarters
    mean, quarter = {}, {}
    for name in totals:
        value, weight = (np.concatenate(parts[name]) for parts in (totals, counts))
        sums = [np.bincount(cells, x, count * QUARTERS).reshape(count, -1) for x in (value, weight)]
        with np.errstate(invalid="ignore"):  # 0/0: nothing was counted there
            quarter[name] = sums[0] / sums[1]
            mean[name] = sums[0].sum(1) / sums[1].sum(1)
    return Diagnosis(mean, quarter)
