"""What a row of a model's cache takes, from a model without weights.

Where all layers are attention whose keys and values are projections of their own, those have the
widths. Else (recurrent states, compressed keys and values) a forward over two tokens on the meta
device shows what the model hands to a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from opd.models.lm import LM


@dataclass(frozen=True)
class CacheSize:
    """Of one row.

    Attributes:
        per_token: bytes per token of keys and values, and window or None, of each attention layer.
        states: bytes of recurrent states, whatever the row's length.
    """

    per_token: tuple[tuple[int, int | None], ...]
    states: int = 0


def cache_size(lm: LM, layers: Sequence[nn.Module], heads: tuple[int, int]) -> CacheSize:
    """What a row takes; recurrent states count 0 where a forward without weights is not possible.

    It is not where the model asks the host for a value, or where kernels are installed for it that
    run on a GPU alone.

    Args:
        lm: the model, on the meta device.
        layers: its decoder layers.
        heads: key-value heads and head size, for where nothing else says more.
    """
    kinds = DynamicCache(config=lm.config).layers
    widths = [_projected(layer) for layer in layers]
    item = lm.working_dtype.itemsize
    plain = all(type(kind) in (DynamicLayer, DynamicSlidingWindowLayer) for kind in kinds)
    if plain and all(widths) and len(widths) == len(kinds):
        sizes = zip(widths, kinds, strict=True)
        return CacheSize(tuple((item * width, _window(kind)) for width, kind in sizes))
    return _handed_over(lm) or CacheSize(
        tuple(
            (2 * heads[0] * heads[1] * item, _window(kind))
            for kind in kinds
            if isinstance(kind, DynamicLayer)
        )
    )


def _projected(layer: nn.Module) -> int:
    """Elements of keys and values per token; 0: they are no projections of their own."""
    linears = {name.rpartition(".")[2]: m for name, m in layer.named_modules()}
    keys, values = (getattr(linears.get(x), "out_features", 0) for x in ("k_proj", "v_proj"))
    return int(keys + values) if keys and values else 0


def _window(kind: Any) -> int | None:
    window: int | None = getattr(kind, "sliding_window", None)
    return window


@torch.no_grad()
def _handed_over(lm: LM) -> CacheSize | None:
    """What a forward over two tokens leaves in a cache, None: it is not possible."""
    config = lm.config  # of this model alone
    config._experts_implementation = "batched_mm"  # the one that asks for no counts
    config.pad_token_id = None  # GPT-2 looks for it
    cache = DynamicCache(config=config)
    ids = torch.zeros(1, 2, dtype=torch.int64, device="meta")
    try:
        lm.hidden(ids, past_key_values=cache, use_cache=True)
    except Exception:  # noqa: BLE001 - of any kind, as kernels raise them
        return None
    per_token, states = [], 0
    for layer in cache.layers:
        kept = [getattr(layer, name, None) for name in ("keys", "values")]
        sizes = [x.shape[1] * x.shape[3] * x.element_size() for x in kept if x is not None]
        if sizes:
            per_token.append((sum(sizes), _window(layer)))
        for name in ("conv_states", "recurrent_states"):
            held = getattr(layer, name, {}).values()
            states += sum(x.numel() * x.element_size() for x in held if isinstance(x, Tensor))
    return CacheSize(tuple(per_token), states) if per_token or states else None
