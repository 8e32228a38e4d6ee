"""Our attention function against transformers' own: numbers, memory, and who gets it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from opd.models import attention
from opd.models.attention import NAME, attention_kernel, grouped_attention
from opd.models.lm import LM, load_lm
from opd.testing import tiny_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Long sequences in bfloat16 take a CPU without products of that type ten seconds each.
BFLOAT16 = pytest.param(
    torch.bfloat16, marks=[pytest.mark.slow] if DEVICE.type == "cpu" else [], id="bfloat16"
)


def tensors(heads, groups, length, keys, *, size=8, dtype=torch.float64, grad=False):
    g = torch.Generator().manual_seed(length + keys)
    shapes = [(2, heads, length, size)] + 2 * [(2, heads // groups, keys, size)]
    made = [torch.randn(*s, generator=g, dtype=torch.float64).to(DEVICE, dtype) for s in shapes]
    return [x.requires_grad_(grad) for x in made]


def masks(length, keys, heads):
    """Masks as models make them; the queries are the last `length` of `keys` tokens."""
    rows = torch.arange(keys - length, keys)[:, None]
    columns = torch.arange(keys)
    causal = (columns <= rows)[None, None].expand(2, 1, -1, -1)
    padded = causal & (columns >= torch.tensor([0, 2])[:, None, None, None])
    sliding = causal & (columns > rows - 3)
    additive = torch.where(sliding, 0.0, -torch.inf).double()
    by_head = additive.expand(-1, heads, -1, -1) - torch.arange(heads)[:, None, None] * columns / 9
    made = {"causal": causal, "padded": padded, "sliding": sliding, "additive": additive}
    return {"none": None} | made | {"of each head": by_head}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("length", "keys"), [(1, 1), (1, 7), (5, 5), (3, 7)])
def test_same_numbers_as_transformers(monkeypatch, fused, groups, length, keys):
    if not fused:  # as for float32 on a GPU
        monkeypatch.setattr(attention, "_fused", lambda *args: False)
    module = SimpleNamespace(num_key_value_groups=groups, is_causal=True)
    for name, mask in masks(length, keys, 4).items():
        mask = None if mask is None else mask.to(DEVICE)
        for causal in (None, False) if name == "none" else (None,):
            results = []
            for function in (grouped_attention, sdpa_attention_forward):
                inputs = tensors(4, groups, length, keys, grad=True)
                options = {"scaling": 0.3, "is_causal": causal, "sliding_window": 3}
                out, _ = function(module, *inputs, mask, **options)
                out.square().sum().backward()
                results.append([out, *(x.grad for x in inputs)])
            for ours, theirs in zip(*results, strict=True):
                assert ours.shape == theirs.shape
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, msg=name)


def test_what_it_does_not_know_goes_to_transformers():
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    inputs = tensors(4, 2, 5, 5)
    bias = torch.randn(1, 4, 5, 5, dtype=torch.float64, device=DEVICE)
    ours, theirs = (
        f(module, *inputs, None, position_bias=bias)[0]
        for f in (grouped_attention, sdpa_attention_forward)
    )
    assert torch.equal(ours, theirs)


def peak_bytes(run) -> int:
    """Bytes allocated at the same time, beyond what is held before."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "expanded"])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize(
    ("heads", "length"), [(8, 2048), pytest.param(32, 4096, marks=pytest.mark.slow)]
)
def test_a_layer_stores_no_score_matrix(monkeypatch, heads, length, dtype, fused):
    # 32 heads are Qwen3-4B's; transformers' function stores three score matrices on a GPU.
    if not fused:
        monkeypatch.setattr(attention, "_fused", lambda *args: False)
    config = transformers.Qwen3Config(
        vocab_size=8, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=heads, num_key_value_heads=heads // 4, head_dim=128,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(config).to(DEVICE, dtype)
    attention.use_grouped_attention(model)
    ids = torch.zeros(1, length, dtype=torch.int64, device=DEVICE)

    def run() -> None:
        model.model(ids, use_cache=False).last_hidden_state.sum().backward()

    run()  # gradients are allocated
    assert peak_bytes(run) < heads * length**2 * 4


class Largest(TorchDispatchMode):
    """The most elements that a new tensor had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        held = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if is_tensor(x)}
        for leaf in tree_leaves(out):
            if is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in held:
                self.elements = max(self.elements, leaf.numel())
        return out


def is_tensor(x) -> bool:
    return isinstance(x, torch.Tensor)


def test_a_decoded_token_copies_no_keys():
    query, key, value = tensors(32, 4, 1, 500, dtype=torch.float32)
    module = SimpleNamespace(num_key_value_groups=4, is_causal=True)
    mask = torch.ones(2, 1, 1, 500, dtype=torch.bool, device=DEVICE)
    with Largest() as largest:
        grouped_attention(module, query, key, value, mask)
    assert largest.elements <= 2 * 32 * 500  # scores at most


def test_a_loaded_model_has_it_and_computes_the_same(tmp_path):
    model = tiny_model(0)
    model.save_pretrained(tmp_path)
    lm = load_lm(str(tmp_path), dtype="float64", device="cpu")
    assert lm.config._attn_implementation == NAME
    assert attention_kernel(lm) == "cpu"
    ids = torch.tensor([[5, 6, 7, 8], [1, 1, 9, 5]])
    for mask in (None, torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])):
        ours, theirs = (m(ids, attention_mask=mask).logits for m in (lm.causal, model))
        torch.testing.assert_close(ours[:, 2:], theirs[:, 2:], rtol=1e-12, atol=1e-12)
    lm.causal.save_pretrained(tmp_path / "again")
    assert NAME not in json.dumps(json.loads((tmp_path / "again/config.json").read_text()))


def test_a_model_that_chose_another_implementation_keeps_it():
    config = transformers.GptOssConfig(
        vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    model = transformers.GptOssForCausalLM(config)
    attention.use_grouped_attention(model)
    assert model.config._attn_implementation == "eager"
    assert attention_kernel(LM(model, 40, "sinks")) == "eager"


def test_a_model_that_asks_for_sdpa_by_name_keeps_it():
    config = transformers.FalconConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.FalconForCausalLM(config)
    attention.use_grouped_attention(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("choice", "name"), [(0, "math"), (1, "flash"), (2, "efficient")])
def test_the_kernel_that_torch_chooses_has_a_name(monkeypatch, choice, name):
    monkeypatch.setattr(LM, "device", torch.device("meta"))
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *args, **kwargs: choice)
    model = tiny_model(0)
    attention.use_grouped_attention(model)
    lm = LM(model, 40, "tiny")
    assert attention_kernel(lm) == name
    assert attention_kernel(lm, decoding=True) == name
