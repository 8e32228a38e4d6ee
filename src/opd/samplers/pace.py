"""How often the host looks at the rows, and in which sizes a step is computed.

A GPU should never wait for the host, and each size of a step is a CUDA graph of its own, so sizes
are few. On a CPU looking is free, and every row and column that is left out saves work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Pace:
    """Sizes and intervals.

    Attributes:
        interval: tokens between two looks at which rows have finished.
        columns: a step attends to a multiple of so many columns of the cache; of more where rows
            are long, so that there are few sizes and at most an eighth is attended to in vain.
        growth: the cache grows by so many columns; None: allocated for the longest row at once,
            since a graph's buffers may not move.
        ladder: row counts of a step, rising; empty: any.
        prefill: padded tokens of prompts per forward.
        graphs: whether steps are captured as CUDA graphs.
    """

    interval: int
    columns: int
    growth: int | None
    ladder: tuple[int, ...]
    prefill: int
    graphs: bool

    def row_count(self, alive: int, maximum: int) -> int:
        """Rows of a step that holds `alive` rows, at most `maximum`."""
        if not self.ladder:
            return alive
        return min([maximum, *(n for n in self.ladder if n >= alive)])

    def column_count(self, needed: int) -> int:
        """Columns that a step with rows of `needed` tokens attends to."""
        size = self.columns
        while self.columns > 1 and needed > 16 * size:
            size *= 2
        return -(-needed // size) * size


CPU = Pace(interval=1, columns=1, growth=64, ladder=(), prefill=4096, graphs=False)
CUDA = Pace(
    interval=16,
    columns=128,
    growth=None,
    ladder=(1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
    prefill=16384,
    graphs=True,
)


def pace_of(device: torch.device) -> Pace:
    """The pace for a device."""
    return CUDA if device.type == "cuda" else CPU
