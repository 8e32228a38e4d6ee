"""Attention of grouped heads without quadratic memory and without copies of the cache.

Most models share each key-value head among a group of G query heads. transformers' SDPA function
leaves the groups to torch (`enable_gqa`) where there is no mask, whatever the dtype: in float32 on
a GPU no fused kernel takes them, and torch uses one that stores the score matrix. With a mask it
copies keys and values G times (before transformers 5.23), in every layer for every decoded token.
Shapes: B rows, H query heads, J = H / G key-value heads, L queries, S keys, D head size.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from opd.models.lm import LM

NAME = "opd_sdpa"  # transformers checks that a name with "sdpa" in it suits the model
# Arguments that change what transformers' function computes; ours leaves those calls to it.
_EXTRAS = ("position_bias", "softcap", "cache", "output_attentions")
_ASKS_FOR_SDPA = re.compile(r"_attn_implementation\s*(==|!=|in\b|not in\b).*[\"']sdpa[\"']")
_KERNELS = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}


def use_grouped_attention(model: Any) -> None:
    """Replace transformers' SDPA function in a model by `grouped_attention`.

    A model for which transformers chose another implementation keeps it (attention sinks), and so
    does one whose code compares the name with "sdpa", which would not recognise ours.
    """
    settable = getattr(model, "_can_set_attn_implementation", lambda: False)
    if getattr(model.config, "_attn_implementation", None) != "sdpa" or not settable():
        return
    if not _ASKS_FOR_SDPA.search(inspect.getsource(sys.modules[type(model).__module__])):
        model.set_attn_implementation(NAME)


def grouped_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' `sdpa_attention_forward`, the same up to rounding.

    Args:
        module: the attention layer.
        query: (B, H, L, D).
        key: (B, J, S, D).
        value: (B, J, S, D).
        attention_mask: boolean or additive, broadcast to (B, H, L, S); None: causal or everything.
        dropout: of the attention weights.
        scaling: of the scores; None: 1 / sqrt(D).
        is_causal: None: as the layer says.
        **kwargs: what else transformers' function takes.

    Returns:
        Outputs (B, L, H, D), and None in place of the weights.
    """
    groups, length = getattr(module, "num_key_value_groups", 1), query.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and length > 1 and attention_mask is None
    plain = groups > 1 and not _has_extras(kwargs)
    if plain and length == 1:  # decoding: the heads of a group are queries of one key-value head
        query = query.reshape(query.shape[0], key.shape[1], groups, query.shape[3])
        if attention_mask is not None and attention_mask.shape[1] > 1:
            batch, columns = attention_mask.shape[0], attention_mask.shape[3]
            attention_mask = attention_mask.reshape(batch, -1, groups, columns)
    elif plain and attention_mask is None and not _fused(query, key, value, causal, dropout):
        if causal:  # of a static cache, keys beyond the queries are empty
            key, value = key[:, :, :length], value[:, :, :length]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    else:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    out = scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, is_causal=causal, scale=scaling
    )
    out = out.reshape(out.shape[0], -1, length, out.shape[3])
    return out.transpose(1, 2).contiguous(), None


def _has_extras(kwargs: dict[str, Any]) -> bool:
    values = [kwargs.get(name) for name in _EXTRAS]
    return any(value is not None and value is not False for value in values)


def _fused(query: Tensor, key: Tensor, value: Tensor, causal: bool, dropout: float) -> bool:
    """Whether torch has a kernel for grouped heads that does not store the score matrix."""
    return _backend(query, key, value, None, causal=causal, dropout=dropout) != SDPBackend.MATH


def _backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    dropout: float = 0.0,
) -> SDPBackend:
    grouped = key.shape[1] != query.shape[1]
    choice = torch._fused_sdp_choice(
        query, key, value, mask, dropout, causal, scale=None, enable_gqa=grouped
    )
    return SDPBackend(choice)


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@torch.no_grad()
def attention_kernel(lm: LM, *, decoding: bool = False) -> str:
    """The kernel that computes a model's attention on its device.

    Args:
        lm: the model.
        decoding: of one token against a cache with a mask, rather than of whole sequences.

    Returns:
        "flash", "efficient", "cudnn" or "math" (which stores the score matrix) on a GPU; "cpu"; or
        the name of the implementation that transformers chose where it is not SDPA.
    """
    implementation = str(lm.config._attn_implementation)
    if "sdpa" not in implementation:
        return implementation
    if lm.device.type == "cpu":
        return "cpu"
    config = lm.config
    heads = int(config.num_attention_heads)
    groups = heads // int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    like: dict[str, Any] = {"dtype": lm.working_dtype, "device": lm.device}
    key = torch.empty(2, heads // groups, 256, size, **like)
    if decoding:
        query = torch.empty(2, heads // groups, groups, size, **like)
        return _kernel_name(_backend(query, key, key, query.new_zeros(2, 1, 1, 256), causal=False))
    query = torch.empty(2, heads, 256, size, **like)
    backend = _backend(query, key, key, None, causal=True)
    if backend == SDPBackend.MATH and implementation == NAME:
        key = key.repeat_interleave(groups, 1)
        backend = _backend(query, key, key, None, causal=True)
    return _kernel_name(backend)


def _kernel_name(backend: SDPBackend) -> str:
    return _KERNELS.get(backend, backend.name.lower())
