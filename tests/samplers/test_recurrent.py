"""Models with recurrent states in slabs: their memory while prompts are read, and their steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from opd.models.cached_forward import read_prompts
from opd.models.slab_cache import SlabCache
from opd.models.slab_layers import StateSlab
from opd.samplers import hf
from opd.samplers.graphs import StepRunner
from opd.samplers.pace import CUDA
from support.architectures import build, sampler_gap
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


class Recorded:
    """A step's operations on the tensors that it had, as a CUDA graph keeps them: no Python."""

    def __init__(self, step, size) -> None:
        def run():
            step(*size)
            return torch.zeros(())

        self.operations, self.replays = make_fx(run)(), 0  # runs it once, which a capture does not

    def replay(self) -> None:
        if self.replays:
            self.operations()
        self.replays += 1

    def reset(self) -> None:
        pass


@pytest.fixture
def recorded(monkeypatch):
    """Steps of a GPU's sizes in small, recorded."""
    graphs = []

    def capture(self, step, size):
        graphs.append(Recorded(step, size))
        return graphs[-1]

    monkeypatch.setattr(StepRunner, "_warm_up", lambda self, step, size: step(*size))
    monkeypatch.setattr(StepRunner, "_capture", capture)
    small = replace(CUDA, columns=8, ladder=(1, 2, 4, 6), interval=3, prefill=12)
    monkeypatch.setattr(hf, "pace_of", lambda device: small)
    return graphs


@pytest.mark.parametrize(
    "name",
    everyday(["Qwen3.5", "Falcon-H1", "LFM2", "Zamba2", "Jamba", "Granite 4", "Kimi Linear"], 0, 1),
)
def test_recorded_steps_see_rows_that_are_refilled_and_moved(recorded, name):
    assert sampler_gap(build(name)) < 2e-3
    assert sum(graph.replays > 1 for graph in recorded) > 1


def test_a_state_that_moves_between_recorded_steps_would_be_found(recorded, monkeypatch):
    keep = StateSlab._keep

    def elsewhere(self, name, index, state):
        keep(self, name, index, state)
        for key, slab in self.states.items():
            self.states[key] = slab.clone()

    monkeypatch.setattr(StateSlab, "_keep", elsewhere)
    assert sampler_gap(build("Qwen3.5")) > 0.05
