"""Projection to a large vocabulary and top-k over it, blocked for the caches of a CPU.

Same numbers as torch's own functions, up to rounding; on an accelerator they are torch's own.
Shapes: N positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

TILE_BYTES = 512 * 640 * 4  # of the head that a thread multiplies at a time
BLOCK = 128  # tokens whose maximum is computed first
MIN_ROWS, MAX_ROWS = 8, 512  # positions for which tiles of rows pay off
MIN_VOCAB = 8192  # below this vocabulary size nothing is gained


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear(hidden, weight, bias)`: (N, H) and (V, H) to (N, V).

    With few positions and a large matrix, a BLAS spends as much on repacking the matrix as on the
    product of 16 to 64 rows. Tiles that stay in cache are 1.1 to 1.8 times as fast; with fewer than
    8 positions, where memory bandwidth is the limit, columns are 1.3 to 3 times as fast.
    In bf16 torch's own is faster (docs/performance.md).
    """
    vocab, width = weight.shape
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    plain = type(weight) in (Tensor, torch.nn.Parameter)  # not sharded
    precise = weight.dtype in (torch.float32, torch.float64)
    few_rows = hidden.ndim == 2 and 1 < len(hidden) <= MAX_ROWS
    if needs_grad or not (plain and precise and few_rows and _is_worth_it(hidden, vocab)):
        return linear(hidden, weight, bias)
    tile = max(64, TILE_BYTES // (width * weight.element_size())) * torch.get_num_threads()
    tiles = [slice(start, start + tile) for start in range(0, vocab, tile)]
    if len(hidden) < MIN_ROWS:
        columns = hidden.new_empty(vocab, len(hidden))
        for rows in tiles:
            torch.mm(weight[rows], hidden.T, out=columns[rows])
        out = columns.T.contiguous()
    else:
        out = hidden.new_empty(len(hidden), vocab)
        for rows in tiles:
            torch.mm(hidden, weight[rows].T, out=out[:, rows])
    return out if bias is None else out.add_(bias)


def topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row (N, V) and their indices, (N, k) each, largest first.

    The k largest lie in the k blocks with the largest maxima; all other blocks need one pass only.
    """
    rows, vocab = values.shape
    blocks = vocab // BLOCK
    if not _is_worth_it(values, vocab) or blocks < 4 * k:
        best = values.topk(k, -1)
        return best.values, best.indices
    blocked = values[:, : blocks * BLOCK].view(rows, blocks, BLOCK)
    chosen = blocked.amax(-1).topk(k, -1).indices
    indices = (chosen[:, :, None] * BLOCK + torch.arange(BLOCK, device=values.device)).flatten(1)
    rest = torch.arange(blocks * BLOCK, vocab, device=values.device).expand(rows, -1)
    indices = torch.cat([indices, rest], 1)
    best = values.gather(1, indices).topk(k, -1)
    return best.values, indices.gather(1, best.indices)


def _is_worth_it(x: Tensor, vocab: int) -> bool:
    return x.device.type == "cpu" and vocab >= MIN_VOCAB
