"""Decoding of sliding windows and recurrent states: right numbers, and captured as CUDA graphs?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from opd.gpu_check.harness import Device
from opd.gpu_check.workload import make_prompts
from opd.models.attention import use_grouped_attention
from opd.models.cache_support import cache_support
from opd.models.lm import LM
from opd.rng import Stream, torch_seed
from opd.samplers.decoding import Decoding
from opd.samplers.graphs import was_captured
from opd.samplers.hf import HFSampler
from opd.samplers.pace import Pace, pace_of
from opd.types import Rollout

VOCAB, ROWS = 400, 8  # fewer rows than completions: finished ones are replaced
TOLERANCE = 2e-3  # nats, in float32, of a sampled token's log-prob
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
WINDOW = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
CONV = {"layer_types": ["conv", "full_attention"] * 2}
STATE_SPACE = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_d_ssm": 128}
# The prefix of the family's classes in transformers, and what differs from SMALL.
FAMILIES: dict[str, dict[str, Any]] = {
    "Gemma3": WINDOW,
    "Qwen3_5": DELTA,
    "Lfm2": CONV,
    "FalconH1": STATE_SPACE | {"mamba_n_groups": 1, "mamba_chunk_size": 16},
}


def layouts(device: Device) -> None:
    """Tiny models: log-probs of samples are those of whole forwards, with graphs and without."""
    for family, changes in FAMILIES.items():
        lm = _make(device, family, changes)
        layout = cache_support(lm).layout
        device.require(layout == "slabs", f"{family}: rows of any length decode together")
        limit = 30 if device.tiny else 80
        pace = pace_of(device.at)
        graphs, eager = (_sample(lm, limit, replace(pace, graphs=x)) for x in (pace.graphs, False))
        gap = max(_largest_gap(lm, rollouts) for rollouts in (graphs, eager))
        same = sum(a.ids.tolist() == b.ids.tolist() for a, b in zip(graphs, eager, strict=True))
        text = f"{family}: log-probs of samples are those of whole forwards"
        numbers = {"largest_nats": gap, "same_as_eager": same, "of": len(eager)}
        device.require(gap < TOLERANCE, text, **numbers)
        if device.is_cuda:
            captured = was_captured(lm.name)
            device.require(captured, f"{family}: a decoding step is captured as a CUDA graph")


def _make(device: Device, family: str, changes: dict[str, Any]) -> LM:
    import transformers

    text = getattr(transformers, f"{family}TextConfig", None)
    config = (text or getattr(transformers, f"{family}Config"))(**SMALL | changes)
    torch.manual_seed(torch_seed(0, Stream.GPU_CHECK))
    with device.at:
        model = getattr(transformers, f"{family}ForCausalLM")(config).float()
    use_grouped_attention(model)
    return LM(model.eval(), VOCAB, f"gpu_check {family}")


def _sample(lm: LM, limit: int, pace: Pace) -> list[Rollout]:
    """Completions that end at many lengths."""
    stop = frozenset(range(1, VOCAB, 20))
    sampler = HFSampler(lm, Decoding(limit), stop=stop, capture=4, batch=ROWS, pace=pace)
    return sampler.sample(make_prompts(8, 40, VOCAB), n=4, key=(0,))


@torch.no_grad()
def _largest_gap(lm: LM, rollouts: list[Rollout]) -> float:
    """Largest difference of a sampled token's log-prob from that of a whole forward, in nats."""
    gap = 0.0
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt.ids, *rollout.ids.tolist()]], device=lm.device)
        first = len(rollout.prompt.ids) - 1
        logits = lm.head.logits(lm.hidden(ids)[0, first:-1]).double()
        logp = logits.log_softmax(-1).gather(1, ids[0, first + 1 :, None])[:, 0].cpu()
        gap = max(gap, float((torch.from_numpy(rollout.logp) - logp).abs().max()))
    return gap
