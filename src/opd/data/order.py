"""The order of training examples: a function of (seed, stream, step), without state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opd.rng import Stream, generator


def batch_indices(count: int, size: int, step: int, *, seed: int, stream: Stream) -> list[int]:
    """Indices of the examples of one step: `size` consecutive ones of all epochs in a row.

    Every epoch is a permutation of its own, drawn from (seed, stream, epoch). A batch that reaches
    the end of an epoch continues in the next. A resumed run needs no replay.

    Args:
        count: examples in the set.
        size: examples of a batch; may exceed `count`.
        step: number of the batch, from 0.
        seed: of the run.
        stream: which set it is.
    """
    positions = range(step * size, (step + 1) * size)
    epochs = sorted({position // count for position in positions})
    orders = {epoch: generator(seed, stream, epoch).permutation(count) for epoch in epochs}
    return [int(orders[position // count][position % count]) for position in positions]


@dataclass(frozen=True)
class Share:
    """A part of the examples that every step takes in proportion to its weight.

    Attributes:
        indices: of its examples.
        weight: relative to the other parts.
    """

    indices: Sequence[int]
    weight: float


def mixed_indices(
    shares: Sequence[Share], size: int, step: int, *, seed: int, shuffle: bool
) -> list[int]:
    """Indices of the examples of one step, taken from every part by its weight.

    The k-th example of a part comes at (k + 1/2) / weight, and a step is a stretch of all of them
    in order: a resumed run needs no replay.

    Args:
        shares: the parts.
        size: examples of a step.
        step: number of the step, from 0.
        seed: of the run.
        shuffle: every pass over a part is a permutation of its own; else in order.
    """
    total, end = sum(s.weight for s in shares), (step + 1) * size
    times, parts = [], []
    for part, share in enumerate(shares):
        fraction = share.weight / total
        count = int(end * fraction) + 2
        times.append((np.arange(count) + 0.5) / fraction)
        parts.append(np.full(count, part))
    order = np.lexsort((np.concatenate(parts), np.concatenate(times)))
    sequence = np.concatenate(parts)[order][:end]
    taken = np.bincount(sequence[: step * size], minlength=len(shares)).tolist()
    chosen = []
    for part in sequence[step * size :].tolist():
        chosen.append(_nth(shares[part], part, taken[part], seed, shuffle))
        taken[part] += 1
    return chosen


def _nth(share: Share, part: int, k: int, seed: int, shuffle: bool) -> int:
    """The k-th example that a part gives, over all passes."""
    count = len(share.indices)
    epoch, position = divmod(k, count)
    if shuffle:
        order = generator(seed, Stream.PROMPT_ORDER, epoch, part).permutation(count)
        position = int(order[position])
    return share.indices[position]
