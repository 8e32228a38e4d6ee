"""The order of training examples: a function of (seed, stream, step), without state."""

from __future__ import annotations

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
