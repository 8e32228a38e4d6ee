"""Bytes that a causal LM takes, from its configuration alone: weights, passes, cache.

The model is built on the meta device, which has shapes and no memory; activations follow from the
widths of its layers. Tests compare them with what real passes allocate.
Shapes: H hidden size, F width of the MLP, V vocabulary, all per token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from opd.config import Lora
from opd.errors import UserError
from opd.models.cache_size import CacheSize, cache_size
from opd.models.configs import context_length_of
from opd.models.lm import LM, add_lora
from opd.models.quantised import can_be_quantised, full_bytes, stored_bytes
from opd.types import Scheme

FLOAT = 4  # bytes of float32
BNB_SCALES = 32 / 64, 0.127  # bits per weight of bitsandbytes' scales: plain, quantised themselves
GROUP, GROUP_BITS = (
    128,
    20,
)  # weights per scale in GPTQ and AWQ; bits of a scale with its zero point


@dataclass(frozen=True)
class ModelSize:
    """What a model takes on a device.

    Attributes:
        itemsize: bytes of an element of the weights.
        hidden: H.
        vocab: V, rows of the head.
        context: longest sequence; None if the configuration does not say.
        weights: bytes of all parameters, adapters included, tied ones once.
        parameters: number of all elements.
        trained: elements of each trained tensor.
        trained_itemsize: bytes of their elements.
        head_trained: whether the output head has a gradient.
        layers: number of decoder layers.
        saved: bytes per token that autograd keeps of all layers.
        layer_saved: of the largest layer alone, which checkpointing recomputes.
        norm_saved: of the last norm, after all layers.
        largest_gradient: bytes of a layer's largest gradient on its way to the sum.
        working: bytes per token of a layer's backward.
        forward: bytes per token of a forward without gradient.
        cache: of a row.
        loaded: bytes of the weights before they are quantised.
        unpacked: bytes that exist while the largest quantised layer is applied.
        lookup: bytes of an input embedding that is not the head's weight too.
    """

    itemsize: int
    hidden: int
    vocab: int
    context: int | None
    weights: int
    parameters: int
    trained: tuple[int, ...]
    trained_itemsize: int
    head_trained: bool
    layers: int
    saved: int
    layer_saved: int
    norm_saved: int
    largest_gradient: int
    working: int
    forward: int
    cache: CacheSize
    loaded: int = 0
    unpacked: int = 0
    lookup: int = 0

    @property
    def trained_elements(self) -> int:
        """Elements that the optimizer updates."""
        return sum(self.trained)

    def cache_bytes(self, tokens: int) -> int:
        """Keys, values and recurrent states of one sequence."""
        return kept_bytes(self.cache.per_token, tokens) + self.cache.states

    def activation_bytes(self, tokens: int, *, checkpointing: bool) -> int:
        """Bytes that autograd keeps at the end of a forward over `tokens`, all layers."""
        if checkpointing:
            return tokens * (self.layers * self.itemsize * self.hidden + self.norm_saved)
        return tokens * (self.saved + self.norm_saved)

    def backward_bytes(self, tokens: int, *, checkpointing: bool) -> int:
        """Bytes beside activations and gradients while layers run backward."""
        recomputed = self.layer_saved if checkpointing else 0
        return tokens * (self.working + recomputed) + self.largest_gradient


def kept_bytes(per_token: Iterable[tuple[int, int | None]], tokens: int) -> int:
    """Keys and values of one sequence: a layer with a window keeps no more tokens than that.

    Args:
        per_token: bytes per token and window of each layer; None: it keeps all tokens.
        tokens: of the sequence.
    """
    return sum(size * (tokens if w is None else min(tokens, w)) for size, w in per_token)


def model_size(
    config: Any,
    dtype: torch.dtype,
    *,
    lora: Lora | None = None,
    on_gpu: bool = False,
    scheme: Scheme | None = None,
) -> ModelSize:
    """Sizes of the model of a transformers configuration.

    Args:
        config: of the model.
        dtype: of its weights.
        lora: adapters that are trained in place of the weights.
        on_gpu: whether RMS norms are fused (`opd.models.norms`), and attention in float32 copies
            keys and values to every query head (`opd.models.attention`).
        scheme: in which opd quantises its linear layers; None: it does not.

    Raises:
        UserError: no causal language model, or adapters that do not fit it.
    """
    lm = _build(config, dtype, lora)
    own, item = lm.config, dtype.itemsize
    layers = _decoder_layers(lm)
    # Layers may differ in their heads (Gemma 4).
    configs = own.per_layer_config
    saved = [_saved_bytes(configs[i], layer, item, on_gpu) for i, layer in enumerate(layers)]
    trained = [p for p in lm.model.parameters() if p.requires_grad]
    width = max((_mlp_width(layer) for layer in layers), default=0)
    width = width or 4 * int(own.hidden_size)
    fused = on_gpu and all(map(_fused_norms, layers))
    of_layers = {id(p): p.numel() for layer in layers for p in layer.parameters()}
    largest = max((of_layers.get(id(p), 0) for p in trained), default=0)
    return ModelSize(
        itemsize=item,
        hidden=int(own.hidden_size),
        vocab=int(own.vocab_size),
        context=context_length_of(own),
        weights=_weight_bytes(lm, config) - _saved_by(lm, scheme),
        loaded=_weight_bytes(lm, config),
        unpacked=_unpacked_bytes(lm, scheme),
        lookup=_lookup_bytes(lm),
        parameters=lm.num_parameters(),
        trained=tuple(p.numel() for p in trained),
        trained_itemsize=max((p.dtype.itemsize for p in trained), default=item),
        head_trained=lm.causal.get_output_embeddings().weight.requires_grad,
        layers=len(layers),
        saved=sum(saved),
        layer_saved=max(saved, default=0),
        norm_saved=(2 * item if fused else FLOAT + 2 * item) * int(own.hidden_size),
        # In the dtype of the weight, then in that of the sum.
        largest_gradient=largest * (item if item >= FLOAT else item + FLOAT),
        working=item * ((2 if item >= FLOAT else 3) * width + 2 * int(own.hidden_size)),
        forward=item * (3 * width + 5 * int(own.hidden_size)),
        cache=cache_size(lm, layers, _heads(own.per_layer_config[0])[1:]),
    )


def quantised_bits(config: Any) -> float | None:
    """Bits per weight of a quantised checkpoint's linear layers, scales included; None: it is not.

    Args:
        config: of the model.
    """
    section = getattr(config, "quantization_config", None)
    if section is None:
        return None
    values = section if isinstance(section, dict) else section.to_dict()
    method = str(values.get("quant_method", ""))
    if values.get("load_in_4bit"):
        return 4 + BNB_SCALES[bool(values.get("bnb_4bit_use_double_quant"))]
    if "bits" in values:
        group = int(values.get("group_size") or GROUP)
        return float(values["bits"]) + GROUP_BITS / (group if group > 0 else GROUP)
    if "mxfp4" in method:
        return 4.25
    return 8.0 if values.get("load_in_8bit") or "fp8" in method else None


def _build(config: Any, dtype: torch.dtype, lora: Lora | None) -> LM:
    config = copy.deepcopy(config)
    with torch.device("meta"):
        try:
            causal = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        except Exception as error:  # noqa: BLE001 - of any kind, as strange values make them
            name = getattr(config, "name_or_path", "") or type(config).__name__
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{name}: no causal language model has this configuration: {first}"
            ) from None
        lm = LM(causal, causal.config.get_text_config().vocab_size, type(causal).__name__)
        if lora is None:
            return lm
        return add_lora(
            lm,
            rank=lora.rank,
            alpha=lora.alpha,
            target_modules=lora.target_modules,
            seed=0,
        )


def _decoder_layers(lm: LM) -> list[nn.Module]:
    count = int(lm.config.num_hidden_layers)
    for module in lm.causal.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    return []


def _quantised_layers(lm: LM) -> list[nn.Linear]:
    head = lm.causal.get_output_embeddings()
    frozen = (m for m in lm.model.modules() if can_be_quantised(m) and m is not head)
    of_adapters = {id(m) for name, m in lm.model.named_modules() if ".lora_" in name}
    return [m for m in frozen if id(m) not in of_adapters]  # type: ignore[misc]


def _saved_by(lm: LM, scheme: Scheme | None) -> int:
    if scheme is None:
        return 0
    return sum(m.weight.nbytes - stored_bytes(m, scheme) for m in _quantised_layers(lm))


def _unpacked_bytes(lm: LM, scheme: Scheme | None) -> int:
    if scheme is None:
        return 0
    layers = _quantised_layers(lm)
    return max((full_bytes(m, scheme, m.weight.itemsize) for m in layers), default=0)


def _lookup_bytes(lm: LM) -> int:
    embedding = lm.causal.get_input_embeddings().weight
    return 0 if embedding is lm.causal.get_output_embeddings().weight else embedding.nbytes


def _weight_bytes(lm: LM, config: Any) -> int:
    """Of all parameters; those of a quantised checkpoint's linear layers have fewer bits."""
    bits = quantised_bits(config)
    head = lm.causal.get_output_embeddings()
    quantised: set[int] = set()
    if bits is not None:
        quantised = {
            id(m.weight) for m in lm.model.modules() if isinstance(m, nn.Linear) and m is not head
        }
    return sum(
        round(p.numel() * (bits or 0) / 8) if id(p) in quantised else p.nbytes
        for p in lm.model.parameters()
    )


def _saved_bytes(config: Any, layer: nn.Module, item: int, on_gpu: bool) -> int:
    """Bytes per token that autograd keeps of a layer.

    Of a norm: its input, unless fused in float32 and with what its gain multiplies; of a
    linear layer with a gradient: its input; of attention: queries, keys, values, outputs; of a
    gated MLP: three or four times its width. Adapters keep a float32 copy of their inputs each.
    """
    heads, kv_heads, size = _heads(config)
    keys = heads if on_gpu and item >= FLOAT else kv_heads
    total = item * size * 2 * (heads + keys)
    fused = on_gpu and _fused_norms(layer)
    adapters: list[Any] = [m for m in layer.modules() if hasattr(m, "lora_A")]
    share_inputs = item >= FLOAT or not adapters  # else each adapter has its own in float32
    for kind, width, frozen in _norms(layer, heads, kv_heads, size):
        total += width * (item if fused else FLOAT if frozen else FLOAT + item)
        total += width * item if kind == "layer" and share_inputs else 0
    total += item * sum(_mlp_elements(config, layer, with_inputs=share_inputs))
    for module in adapters:
        total += FLOAT * sum(a.out_features for a in module.lora_A.values())
        if not share_inputs:
            total += FLOAT * getattr(module.base_layer, "in_features", config.hidden_size)
    return total


def _heads(config: Any) -> tuple[int, int, int]:
    """Query heads, key-value heads and head size."""
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return heads, kv_heads, int(getattr(config, "head_dim", None) or config.hidden_size // heads)


def _fused_norms(layer: nn.Module) -> bool:
    """Whether a layer has RMS norms that torch's kernel computes; Gemma's gain has an offset."""
    names = {type(m).__name__ for m in layer.modules() if "Norm" in type(m).__name__}
    return all("RMSNorm" in name and "Gemma" not in name for name in names)


def _norms(
    layer: nn.Module, heads: int, kv_heads: int, size: int
) -> Iterator[tuple[str, int, bool]]:
    """Each norm of a layer: "layer" or "head", elements per token, whether its gain is frozen."""
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if "Norm" not in type(module).__name__ or weight is None:
            continue
        last = name.rpartition(".")[2]
        if weight.numel() == size and last[:1] in "qk":
            width = size * (heads if last.startswith("q") else kv_heads)
            yield "head", width, not weight.requires_grad
        else:
            kind = "head" if last[:2] in ("q_", "k_") else "layer"
            yield kind, weight.numel(), not weight.requires_grad


def _mlp_linears(layer: nn.Module) -> Iterator[nn.Linear]:
    for name, module in layer.named_modules():
        base = getattr(module, "base_layer", module)
        if isinstance(base, nn.Linear) and not any(
            part in name for part in ("attn", "attention", "mixer", "lora_", "base_layer")
        ):
            yield base


def _mlp_width(layer: nn.Module) -> int:
    return max((m.in_features for m in _mlp_linears(layer)), default=0)


def _mlp_elements(config: Any, layer: nn.Module, *, with_inputs: bool) -> Iterator[int]:
    """Elements per token that a layer's MLP keeps: of its own linear layers, and of experts."""
    hidden = int(config.hidden_size)
    linears = [m for m in _mlp_linears(layer) if hidden in (m.in_features, m.out_features)]
    up = sum(m.out_features for m in linears if m.in_features == hidden)
    down = sum(m.in_features for m in linears if m.out_features == hidden != m.in_features)
    gated = up >= 2 * down
    yield up + (down if gated else 0) + (down if with_inputs else 0)
    chosen = int(getattr(config, "num_experts_per_tok", None) or 0)
    for name, parameter in layer.named_parameters():
        if parameter.ndim == 3 and "down" in name:  # (experts, H, F) or (experts, F, H)
            width = (
                max(parameter.shape[1:])
                if hidden == min(parameter.shape[1:])
                else min(parameter.shape[1:])
            )
            yield chosen * (2 * hidden + 4 * width)
