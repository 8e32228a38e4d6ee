"""Models with recurrent states in slabs: their memory while prompts are read, and their steps."""

from __future__ import annotations

import pytest
import torch

from opd.models.cached_forward import read_prompts
from opd.models.slab_cache import SlabCache
from support.architectures import build
from support.everyday import everyday

pytestmark = pytest.mark.filterwarnings("ignore")  # of kernels that are not installed


@torch.no_grad()
def read(lm, slabs: SlabCache, prompts: int, tokens: int) -> torch.Tensor:
    """Read prompts of so many tokens into the first rows."""
    rows, lengths = torch.arange(prompts), torch.full((prompts,), tokens)
    ids = [[3 + (i + t) % 30 for t in range(tokens)] for i in range(prompts)]
    return read_prompts(lm, slabs, ids, (rows, rows), lengths)


@pytest.mark.parametrize("name", everyday(["Qwen3.5", "LFM2", "Falcon-H1"], 0))
def test_states_of_prompts_that_were_read_are_kept_once(name):
    lm, rows = build(name), 3
    slabs = SlabCache(lm.config, rows, 8, lm.device)
    read(lm, slabs, rows, 4)
    assert slabs.bytes_of_states() > 0
    for layer in slabs.recurrent:  # else there is a second set while the other layers run
        assert not any(x is not None for x in layer.conv_states.values())
        assert not any(x is not None for x in layer.recurrent_states.values())
