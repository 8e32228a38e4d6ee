"""Every architecture of docs/models.md does what the table there says, no more and no less."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opd.errors import UserError
from opd.models.cache_support import cache_support, require_cache
from opd.models.model_size import model_size
from opd.models.prefix_cache import supports_prefix_cache
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.samplers.pace import CPU, CUDA
from support.architectures import ARCHITECTURES, COLUMNS, DOC, WINDOW, attempt, build, prompts

# One of each kind; the others are slow only by their number.
EVERY_DAY = {
    "Llama", "Qwen3", "Qwen3-MoE", "Qwen3.5", "Gemma 2", "Gemma 3", "Phi-3, Phi-4", "OLMo 2",
    "GLM-4", "gpt-oss", "LFM2", "Falcon-H1", "Mamba",
}  # fmt: skip

REFUSED = ("MiniMax", "Mamba", "RecurrentGemma")


@pytest.mark.filterwarnings("ignore")  # of kernels that are not installed
@pytest.mark.parametrize(
    "name",
    [
        name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)
def test_the_table_says_what_an_architecture_does(name, tmp_path):
    assert attempt(name, tmp_path).row(name) in DOC.read_text(encoding="utf-8").splitlines()


def test_the_table_names_every_architecture():
    text = DOC.read_text(encoding="utf-8").partition("<!-- table -->\n")[2]
    lines = text.partition("<!-- end of table -->")[0].splitlines()
    assert lines[0] == "| " + " | ".join(COLUMNS) + " |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(ARCHITECTURES)
    assert all(name in ARCHITECTURES for name in EVERY_DAY)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pace", [CPU, CUDA], ids=["cpu", "cuda"])
@pytest.mark.parametrize(
    ("name", "layout"),
    [("Gemma 3", "slabs"), ("Qwen3.5", "slabs"), ("Falcon-H1", "slabs"), ("Bloom", "aligned")],
)
def test_rollouts_do_not_depend_on_their_batch(monkeypatch, name, layout, pace):
    monkeypatch.setattr("opd.samplers.hf.pace_of", lambda device: replace(pace, graphs=False))
    lm = build(name)
    assert cache_support(lm).layout == layout
    together, apart = (
        HFSampler(lm, Decoding(20), stop=frozenset({1}), capture=2, batch=batch).sample(
            prompts(), n=4, key=(3,)
        )
        for batch in (12, 3)
    )
    same = [a.ids.tolist() == b.ids.tolist() for a, b in zip(together, apart, strict=True)]
    assert sum(same) >= len(same) - 1  # in float32 a token on the edge may fall to the other side
    assert {r.finish for r in together} == {"stop", "length"}


def test_recurrent_states_are_never_shared_among_responses():
    for name in ("LFM2", "Falcon-H1", "Qwen3.5", "Zamba2"):
        assert not supports_prefix_cache(build(name))


def test_what_cannot_be_sampled_is_refused_by_name():
    lm = build("Mamba")
    with pytest.raises(UserError, match=r"Mamba: MambaForCausalLM cannot be sampled.*docs/models"):
        require_cache(lm)
    with pytest.raises(UserError, match="cannot be sampled"):
        HFSampler(lm, Decoding(2), stop=frozenset(), capture=1)


@pytest.mark.filterwarnings("ignore")
def test_left_padding_that_biases_turn_into_tokens_is_found(monkeypatch):
    """No released LFM2 has these biases; log-probs of sampled tokens were wrong by 0.09 nats."""
    family, changes = ARCHITECTURES["LFM2"]
    monkeypatch.setitem(ARCHITECTURES, "LFM2", (family, changes | {"conv_bias": True}))
    lm = build("LFM2")
    assert cache_support(lm).layout == "slabs"  # they are zero
    lm.cache_support = None
    for name, parameter in lm.causal.named_parameters():
        if name.endswith("in_proj.bias"):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    assert cache_support(lm).layout == "none"


def test_memory_of_a_cache_is_measured():
    plain, window, state = (cache_support(build(x)) for x in ("Llama", "Gemma 3", "Falcon-H1"))
    one_layer = 2 * 1 * 8 * 4  # keys and values, one head of 8 in float32
    assert [plain.row_bytes(tokens) for tokens in (1, 100)] == [2 * one_layer, 200 * one_layer]
    assert [window.row_bytes(tokens) for tokens in (1, 100)] == [
        2 * one_layer,
        (100 + WINDOW) * one_layer,
    ]
    assert state.row_bytes(100) - state.row_bytes(1) == 99 * 2 * one_layer
    assert state.row_bytes(0) > 2000


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        name if name in EVERY_DAY else pytest.param(name, marks=pytest.mark.slow)
        for name in ARCHITECTURES
        if name not in REFUSED
    ],
)
def test_memory_of_a_cache_is_planned_as_it_is_measured(name):
    lm = build(name)
    planned, measured = model_size(lm.causal.config, torch.float32), cache_support(lm)
    for tokens in (1, 100):
        assert planned.cache_bytes(tokens) == measured.row_bytes(tokens)


def test_a_model_with_weights_that_are_not_finite_is_not_refused_for_its_cache():
    lm = build("Llama")
    with torch.no_grad():
        lm.causal.get_input_embeddings().weight.fill_(torch.nan)
    assert cache_support(lm).layout == "slabs"
