"""RMS norms by torch's kernel: the same numbers and gradients, only where they are the same."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

from opd.models.norms import use_fused_norms
from opd.testing import tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hidden_states_and_gradients_stay_the_same(dtype):
    own = tiny_model(0, dtype=dtype)
    fused = copy.deepcopy(own)
    assert use_fused_norms(fused) == 2 * 4 + 1  # input, post-attention, query, key; the last one
    ids = torch.arange(3, 20)[None]
    outputs, gradients = [], []
    for model in (own, fused):
        hidden = model.model(input_ids=ids).last_hidden_state
        hidden.float().square().sum().backward()
        outputs.append(hidden.detach().float())
        gradients.append(torch.cat([p.grad.float().flatten() for p in model.model.parameters()]))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for a, b in (outputs, gradients):
        assert (a - b).norm() <= tolerance * a.norm()
    assert list(own.state_dict()) == list(fused.state_dict())


def test_a_copy_uses_its_own_weights():
    norm = Qwen3RMSNorm(8)
    assert use_fused_norms(norm) == 1
    copied = copy.deepcopy(norm)
    with torch.no_grad():
        copied.weight.fill_(3.0)
    hidden = torch.randn(2, 8)
    assert torch.allclose(copied(hidden), 3 * norm(hidden))


@pytest.mark.parametrize(
    "norm", [Gemma3RMSNorm(8), Qwen3NextRMSNormGated(8)], ids=["Gemma", "gate"]
)
def test_a_norm_that_computes_something_else_keeps_its_code(norm):
    assert use_fused_norms(norm) == 0
    assert "forward" not in vars(norm)
