"""Tiny models of several architectures, with random weights that depend on a seed alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from opd.rng import torch_seed
from opd_lab.streams import WorldStream

HEAD = 16  # width of an attention head


@dataclass(frozen=True)
class Architecture:
    """Kind and size of a model.

    Attributes:
        kind: key of `CONFIGS`.
        width: hidden size, a multiple of 32.
        layers: number of blocks.
        tied: input and output embeddings share weights.
    """

    kind: str
    width: int = 64
    layers: int = 2
    tied: bool = True


def _llama_like(config: type, **extra: Any) -> Any:
    def make(a: Architecture, common: dict[str, Any]) -> Any:
        heads = a.width // HEAD
        return config(
            hidden_size=a.width,
            intermediate_size=5 * a.width // 2,
            num_hidden_layers=a.layers,
            num_attention_heads=heads,
            num_key_value_heads=extra.get("kv_heads", heads),
            **{name: value for name, value in extra.items() if name != "kv_heads"},
            **common,
        )

    return make


def _gpt2(a: Architecture, common: dict[str, Any]) -> Any:
    return GPT2Config(
        n_embd=a.width,
        n_layer=a.layers,
        n_head=a.width // HEAD,
        n_inner=4 * a.width,
        n_positions=common.pop("max_position_embeddings"),
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **common,
    )


CONFIGS = {
    "llama": _llama_like(LlamaConfig),
    "qwen2": _llama_like(Qwen2Config, kv_heads=2),
    "qwen3": _llama_like(Qwen3Config, head_dim=HEAD),
    "gemma": _llama_like(GemmaConfig, head_dim=HEAD, kv_heads=1),
    "gpt2": _gpt2,
}


def random_model(
    architecture: Architecture, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> Any:
    """A randomly initialised model for a tokenizer; depends on `seed` alone."""
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ENDS}
    common = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "tie_word_embeddings": architecture.tied,
        "dtype": "float32",
        **ends,
    }
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture.kind](architecture, common))
    rng = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            # 1/sqrt(width): the library's 0.02 suits wide models and stalls narrow ones.
            embedding = any(part in name for part in ("embed_tokens", "wte", "wpe"))
            torch.nn.init.normal_(
                weight, std=architecture.width**-0.5 / (2 if embedding else 1), generator=rng
            )
    model.generation_config = GenerationConfig(**ends)
    return model


ENDS = ("bos", "eos", "pad")


def scale_logits(model: Any, factor: float) -> None:
    """Multiply the logits of a model by `factor`, in the weights of its last norm."""
    with torch.no_grad():
        if model.config.model_type == "gpt2":
            norm = model.transformer.ln_f
            norm.bias.mul_(factor)
        else:
            norm = model.model.norm
        if model.config.model_type == "gemma":  # its norm multiplies by 1 + weight
            norm.weight.add_(1).mul_(factor).sub_(1)
        else:
            norm.weight.mul_(factor)


def add_noise(model: Any, relative: float, *, seed: int) -> None:
    """Add normal noise to every matrix: `relative` times the standard deviation of its weights."""
    rng = torch.Generator().manual_seed(torch_seed(seed, WorldStream.NOISE))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                noise = torch.randn(weight.shape, generator=rng)
                weight.add_(noise * weight.std() * relative)
