"""Sizes that follow from a configuration, against those of real models and of what they do."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from opd.config import Lora
from opd.errors import UserError
from opd.models.attention import use_grouped_attention
from opd.models.cache_support import cache_support
from opd.models.lm import LM, add_lora, enable_checkpointing
from opd.models.model_size import model_size, quantised_bits
from support.everyday import everyday
from support.live_bytes import LiveBytes

VOCAB, TOKENS = 512, 512
WITHIN = 0.2
FAMILIES = {
    "qwen3": transformers.Qwen3Config,
    "llama": transformers.LlamaConfig,
    "gemma3": transformers.Gemma3TextConfig,
    "olmo2": transformers.Olmo2Config,
    "phi3": transformers.Phi3Config,
    "granite": transformers.GraniteConfig,
}


def family(name: str, **changes):
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name in ("qwen3", "gemma3"):
        shape["head_dim"] = 32
    return FAMILIES[name](**(shape | changes))


def real(config, dtype, *, lora: Lora | None = None) -> LM:
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    use_grouped_attention(model)
    lm = LM(model, VOCAB, "real")
    if lora is None:
        return lm
    return add_lora(
        lm, rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules, seed=0
    )


def count_pass(lm: LM) -> tuple[int, int]:
    """Bytes held after a forward, and at most in forward and backward, beside gradients."""
    sums = []
    for parameter in lm.parameters().values():
        parameter.grad_dtype = torch.float32
        parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
        sums.append(parameter.grad)
    lm.model.train()
    with LiveBytes([*lm.model.parameters(), *lm.model.buffers(), *sums]) as live:
        hidden = lm.hidden(torch.full((1, TOKENS), 3))
        held = live.now
        hidden.backward(torch.ones_like(hidden))
    return held, live.peak


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("lora", [None, Lora(rank=8)], ids=["full", "lora"])
@pytest.mark.parametrize(
    "dtype", everyday([torch.float32, torch.bfloat16], 1), ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_activations_are_those_of_a_real_pass(name, dtype, lora, checkpointing):
    size = model_size(family(name), dtype, lora=lora)
    lm = real(family(name), dtype, lora=lora)
    if checkpointing:
        enable_checkpointing(lm)
    held, peak = count_pass(lm)
    planned = size.activation_bytes(TOKENS, checkpointing=checkpointing)
    backward = size.backward_bytes(TOKENS, checkpointing=checkpointing)
    assert planned == pytest.approx(held, rel=WITHIN + 0.05)
    assert planned + backward == pytest.approx(peak, rel=WITHIN + 0.05)


class FusedNorm(torch.autograd.Function):
    """Keeps what torch's kernel keeps on a GPU; its numbers are none."""

    @staticmethod
    def forward(ctx, hidden, weight):
        ctx.save_for_backward(hidden, weight)
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx, gradient):
        hidden, weight = ctx.saved_tensors
        return torch.zeros_like(hidden), torch.zeros_like(weight)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("lora", [None, Lora(rank=8)], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["qwen3", "llama", "olmo2"])
def test_activations_with_the_fused_norms_of_a_gpu(name, lora, checkpointing):
    lm = real(family(name), torch.bfloat16, lora=lora)
    for module in lm.model.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = lambda hidden, norm=module: FusedNorm.apply(hidden, norm.weight)
    if checkpointing:
        enable_checkpointing(lm)
    held, peak = count_pass(lm)
    size = model_size(family(name), torch.bfloat16, lora=lora, on_gpu=True)
    planned = size.activation_bytes(TOKENS, checkpointing=checkpointing)
    backward = size.backward_bytes(TOKENS, checkpointing=checkpointing)
    assert planned == pytest.approx(held, rel=WITHIN + 0.05)
    assert planned + backward == pytest.approx(peak, rel=WITHIN + 0.05)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_forward_without_gradient(name):
    lm = real(family(name), torch.bfloat16)
    with torch.no_grad(), LiveBytes([*lm.model.parameters(), *lm.model.buffers()]) as live:
        lm.hidden(torch.full((1, TOKENS), 3))
    planned = TOKENS * model_size(family(name), torch.bfloat16).forward
    assert planned == pytest.approx(live.peak, rel=WITHIN + 0.05)


@pytest.mark.parametrize("lora", [None, Lora(rank=8)], ids=["full", "lora"])
@pytest.mark.parametrize("tie", [True, False])
def test_weights_are_counted_exactly(tie, lora):
    config = family("qwen3", tie_word_embeddings=tie)
    size, lm = (
        model_size(config, torch.bfloat16, lora=lora),
        real(config, torch.bfloat16, lora=lora),
    )
    assert size.weights == sum(p.nbytes for p in lm.model.parameters())
    assert size.parameters == lm.num_parameters()
    assert size.trained_elements == sum(p.numel() for p in lm.parameters().values())
    assert size.trained_itemsize == next(iter(lm.parameters().values())).itemsize
    assert size.head_trained == (lora is None)


def test_the_cache_is_that_of_a_real_model():
    lm = real(family("qwen3"), torch.float32)
    size = model_size(family("qwen3"), torch.float32)
    assert size.cache_bytes(100) == cache_support(lm).row_bytes(100)


def test_a_window_bounds_the_cache():
    size = model_size(family("gemma3", sliding_window=16, num_hidden_layers=6), torch.float32)
    assert size.cache_bytes(16) == 16 * size.cache_bytes(1)
    assert size.cache_bytes(1000) < 0.5 * 1000 * size.cache_bytes(1)


def test_experts_are_counted_by_those_that_a_token_goes_to():
    config = transformers.Qwen3MoeConfig(
        **family("qwen3").to_dict()
        | {"moe_intermediate_size": 96, "num_experts": 8, "num_experts_per_tok": 2}
    )
    held, _ = count_pass(real(config, torch.bfloat16))
    planned = model_size(config, torch.bfloat16).activation_bytes(TOKENS, checkpointing=False)
    assert planned == pytest.approx(held, rel=WITHIN)


@pytest.mark.parametrize(
    ("section", "bits"),
    [
        (None, None),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, 4.127),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4.15625),
        ({"quant_method": "fp8"}, 8.0),
        ({"quant_method": "mxfp4"}, 4.25),
    ],
)
def test_a_quantised_checkpoint_is_smaller(section, bits):
    config = family("qwen3", tie_word_embeddings=False)
    whole = model_size(config, torch.bfloat16).weights
    config.quantization_config = section
    assert quantised_bits(config) == bits
    size = model_size(config, torch.bfloat16).weights
    others = 2 * 2 * VOCAB * 128  # embedding and head are not quantised, norms are small
    if bits is not None:
        assert size - others == pytest.approx(bits / 16 * (whole - others), rel=0.02)
    else:
        assert size == whole


def test_a_configuration_without_a_language_model_is_refused():
    with pytest.raises(UserError, match="no causal language model"):
        model_size(transformers.ViTConfig(), torch.float32)
