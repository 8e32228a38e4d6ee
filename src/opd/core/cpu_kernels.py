"""What costs as much as the vocabulary is wide, done so that a processor's caches are used.

Same numbers as torch's own functions, up to rounding. An accelerator takes torch's way.
Shapes: N positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

TILE_BYTES = 512 * 640 * 4  # of the head that a thread takes at a time
BLOCK = 128  # tokens whose largest value is looked at first
FEW, MANY = 8, 512  # positions
NARROW = 8192  # vocabularies below this are not worth the trouble


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`linear(hidden, weight, bias)`: (N, H) and (V, H) to (N, V).

    Few positions against a large matrix: a BLAS repacks the matrix before it multiplies, which
    costs as much as the product of 16 to 64 rows. By tiles that stay in cache, 1.1 to 1.8 times as
    fast; fewer than 8 positions, which mostly wait for the matrix, as columns: 1.3 to 3 times.
    In bf16 torch's own is faster (docs/performance.md).
    """
    vocab, width = weight.shape
    learning = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    plain = type(weight) in (Tensor, torch.nn.Parameter)  # not in pieces on several processes
    wide = weight.dtype in (torch.float32, torch.float64)
    some = hidden.ndim == 2 and 1 < len(hidden) <= MANY
    if learning or not (plain and wide and some and _worth(hidden, vocab)):
        return linear(hidden, weight, bias)
    tile = max(64, TILE_BYTES // (width * weight.element_size())) * torch.get_num_threads()
    tiles = [slice(start, start + tile) for start in range(0, vocab, tile)]
    if len(hidden) < FEW:
        columns = hidden.new_empty(vocab, len(hidden))
        for rows in tiles:
            torch.mm(weight[rows], hidden.T, out=columns[rows])
        out = columns.T.contiguous()
    else:
        out = hidden.new_empty(len(hidden), vocab)
        for rows in tiles:
            torch.mm(hidden, weight[rows].T, out=out[:, rows])
    return out if bias is None else out.add_(bias)


def top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (N, V) and their places, (N, k) each, largest first.

    The k largest lie in the k blocks with the largest maxima, so all but those need one pass only.
    """
    rows, vocab = values.shape
    blocks = vocab // BLOCK
    if not _worth(values, vocab) or blocks < 4 * k:
        best = values.topk(k, -1)
        return best.values, best.indices
    whole = values[:, : blocks * BLOCK].view(rows, blocks, BLOCK)
    chosen = whole.amax(-1).topk(k, -1).indices
    places = (chosen[:, :, None] * BLOCK + torch.arange(BLOCK, device=values.device)).flatten(1)
    rest = torch.arange(blocks * BLOCK, vocab, device=values.device).expand(rows, -1)
    places = torch.cat([places, rest], 1)
    best = values.gather(1, places).topk(k, -1)
    return best.values, places.gather(1, best.indices)


def _worth(x: Tensor, vocab: int) -> bool:
    return x.device.type == "cpu" and vocab >= NARROW
