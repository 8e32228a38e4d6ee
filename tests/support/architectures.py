"""Tiny random models of many architectures, and the table of docs/models.md.

    PYTHONPATH=src:tests python -m support.architectures    # tries them all and writes the table

`tests/models/test_architectures.py` fails where the table does not say what was found.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from opd.core.objective import Objective
from opd.errors import UserError
from opd.models.attention import use_grouped_attention
from opd.models.cache_support import cache_support
from opd.models.lm import LM, add_lora, check_head, load_lm
from opd.models.prefix_cache import supports_prefix_cache
from opd.models.saving import save_final
from opd.samplers.decoding import Decoding
from opd.samplers.hf import HFSampler
from opd.testing import tiny_tokenizer
from opd.training.step import update
from opd.types import Prompt
from support.updates import experience, learner_of

DOC = Path(__file__).resolve().parents[2] / "docs" / "models.md"
VOCAB = 40
WINDOW = 8  # shorter than what is sampled
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.4,
}
HEAD = {"head_dim": 8}
MOE = {
    "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2,
    "num_local_experts": 4,
}  # fmt: skip
MLA = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "num_key_value_heads": 2,
}  # fmt: skip
DELTA = {
    "linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MAMBA2 = {
    "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}  # fmt: skip
SLIDING = {"sliding_window": WINDOW}
MIXED = SLIDING | {"layer_types": ["sliding_attention", "full_attention"]}
KIMI = MOE | MLA | {
    "linear_attn_config": {
        "num_heads": 2, "head_dim": 8, "short_conv_kernel_size": 4, "kda_layers": [1],
        "full_attn_layers": [2],
    },
}  # fmt: skip
ZAMBA2 = {
    "mamba_d_state": 8, "mamba_expand": 2, "mamba_ngroups": 1, "n_mamba_heads": 2,
    "num_mem_blocks": 1, "chunk_size": 8, "hybrid_layer_ids": [1], "adapter_rank": 4,
    "layers_block_type": ["mamba", "hybrid"], "num_key_value_heads": 2,
}  # fmt: skip
JAMBA = MOE | {
    "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "attn_layer_period": 2,
    "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
    "use_mamba_kernels": False,
}  # fmt: skip

# Name in the table: the family's prefix of its classes in transformers, and its configuration.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Mistral": ("Mistral", HEAD | {"sliding_window": None}),
    "Mistral, window": ("Mistral", HEAD | SLIDING),
    "Mixtral": ("Mixtral", MOE | {"sliding_window": None}),
    "Qwen2": ("Qwen2", {}),
    "Qwen3": ("Qwen3", HEAD),
    "Qwen3-MoE": ("Qwen3Moe", HEAD | MOE),
    "Qwen3-Next": ("Qwen3Next", HEAD | MOE | DELTA | {"shared_expert_intermediate_size": 16}),
    "Qwen3.5": ("Qwen3_5", HEAD | DELTA),
    "Qwen3.5-MoE": (
        "Qwen3_5Moe",
        HEAD | MOE | DELTA | {"shared_expert_intermediate_size": 16},
    ),
    "Gemma 2": ("Gemma2", HEAD | MIXED),
    "Gemma 3": ("Gemma3", HEAD | MIXED),
    "Gemma 4": ("Gemma4", HEAD | MIXED),
    "Ministral": ("Ministral", HEAD | MIXED),
    "Phi": ("Phi", {}),
    "Phi-3, Phi-4": ("Phi3", {}),
    "OLMo 2": ("Olmo2", {}),
    "OLMo 3": ("Olmo3", MIXED),
    "OLMo Hybrid": ("OlmoHybrid", HEAD | DELTA),
    "GLM-4": ("Glm4", HEAD),
    "Granite": ("Granite", {}),
    "Granite 4": (
        "GraniteMoeHybrid",
        MOE | MAMBA2 | {"layers_block_type": ["mamba", "attention"]},
    ),
    "SmolLM3": ("SmolLM3", {}),
    "Cohere 2": ("Cohere2", HEAD | MIXED),
    "DeepSeek-V3": ("DeepseekV3", MOE | MLA),
    "gpt-oss": ("GptOss", HEAD | MOE | MIXED),
    "LFM2": ("Lfm2", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "LFM2-MoE": (
        "Lfm2Moe",
        MOE
        | {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "num_dense_layers": 1},
    ),
    "Kimi Linear": ("KimiLinear", HEAD | KIMI),
    "Falcon-H1": ("FalconH1", HEAD | MAMBA2 | {"mamba_d_ssm": 32}),
    "Zamba2": ("Zamba2", ZAMBA2),
    "Jamba": ("Jamba", JAMBA),
    "Bamba": ("Bamba", MAMBA2 | {"attn_layer_indices": [1]}),
    "GPT-2": ("GPT2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    "Bloom": ("Bloom", {"n_layer": 2, "n_head": 2}),
    "MiniMax": (
        "MiniMax",
        HEAD | MOE | {"layer_types": ["linear_attention", "full_attention"], "block_size": 8},
    ),
    "Mamba": ("Mamba", {"state_size": 8, "conv_kernel": 4, "expand": 2}),
    "RecurrentGemma": (
        "RecurrentGemma",
        {"lru_width": 16, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    ),
}  # fmt: skip
COLUMNS = ("architecture", "sampler", "prompts run once", "update", "LoRA", "save and load")


@dataclass
class Trial:
    """What was found of an architecture, each "yes" or a reason."""

    sampler: str
    prefix: str
    update: str
    lora: str
    saved: str

    def row(self, name: str) -> str:
        """Its line of the table."""
        cells = (name, self.sampler, self.prefix, self.update, self.lora, self.saved)
        return "| " + " | ".join(cells) + " |"


def build(name: str, seed: int = 0) -> LM:
    """A tiny random model in float32, as `load_lm` would return it."""
    family, changes = ARCHITECTURES[name]
    text = getattr(transformers, f"{family}TextConfig", None)
    config = (text or getattr(transformers, f"{family}Config"))(**SMALL | changes)
    cls = getattr(transformers, f"{family}ForCausalLM", None)
    cls = cls or getattr(transformers, f"{family}LMHeadModel")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config).float().eval()
    use_grouped_attention(model)
    lm = LM(model, VOCAB, name)
    check_head(lm, "student.model")
    return lm


def prompts() -> list[Prompt]:
    """Of unequal lengths, below and above the window."""
    random = np.random.default_rng(0)
    lengths = (3, 12, 6)
    return [
        Prompt(i, tuple(random.integers(3, VOCAB, n).tolist()), "") for i, n in enumerate(lengths)
    ]


def sampler_gap(lm: LM) -> float:
    """Largest difference of a sampled token's log-prob from that of a whole forward, in nats."""
    sampler = HFSampler(lm, Decoding(14), stop=frozenset({1}), capture=4, batch=5)
    gap = 0.0
    for rollout in sampler.sample(prompts(), n=3, key=(0,)):
        ids = torch.tensor([[*rollout.prompt.ids, *rollout.ids.tolist()]])
        with torch.no_grad():
            logits = lm.causal(input_ids=ids, use_cache=False).logits[0].double()
        logp = logits.log_softmax(-1)[len(rollout.prompt.ids) - 1 : -1]
        expected = logp.gather(1, torch.from_numpy(rollout.ids).long()[:, None])[:, 0]
        gap = max(gap, float((torch.from_numpy(rollout.logp) - expected).abs().max()))
    return gap


def changed(student: LM, teacher: LM) -> bool:
    """Whether one update by a local teacher changes every kind of weight that is trained."""
    objective = Objective(k=4)
    before = {name: p.detach().clone() for name, p in student.parameters().items()}
    batch = experience(student, teacher, objective, prompts())
    metrics = update(learner_of(student, teacher, objective), batch, 0)
    moved = [not torch.equal(p, before[name]) for name, p in student.parameters().items()]
    return all(np.isfinite(m.value) for m in metrics.values()) and np.mean(moved) > 0.4


def reloads(lm: LM, folder: Path) -> bool:
    """Whether the final model, loaded again, computes the same."""
    save_final(lm, tiny_tokenizer(), folder)
    again = load_lm(str(folder), dtype="float32", device="cpu")
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        one, two = (x.head.logits(x.hidden(ids)[0]) for x in (lm, again))
    return torch.allclose(one, two, atol=1e-4)


def attempt(name: str, folder: Path) -> Trial:
    """Try everything with one architecture."""
    lm, teacher = build(name), build(name, seed=1)
    layout = cache_support(lm).layout
    prefix = "yes" if supports_prefix_cache(lm) else "no"
    try:
        gap = sampler_gap(lm)
    except UserError:
        return Trial("refused", "-", "-", "-", "-")
    assert gap < 2e-3, gap
    student = LM(copy.deepcopy(lm.model), VOCAB, name)
    updated = changed(student, teacher)
    saved = reloads(student, folder / "full")
    adapted, modules = with_lora(name)
    lora = changed(adapted, teacher) and sampler_gap(adapted) < 2e-3
    saved = saved and reloads(adapted, folder / "lora")
    works = ["yes" if x else "no" for x in (updated, saved)]
    return Trial(layout, prefix, works[0], modules if lora else "no", works[1])


def with_lora(name: str) -> tuple[LM, str]:
    """A student with adapters on all linear layers, or where peft takes them."""
    for modules, answer in (
        ("all-linear", "yes"),
        (["q_proj", "k_proj", "v_proj", "o_proj"], "attention only"),
    ):
        try:
            lm = add_lora(build(name), rank=2, alpha=4, target_modules=modules, seed=0)
        except UserError:  # peft's, for state spaces
            continue
        return lm, answer
    raise AssertionError(f"{name} takes no adapters")


def table(rows: dict[str, Trial]) -> str:
    """The Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *(trial.row(name) for name, trial in rows.items())])


def main() -> None:
    """Write the table into docs/models.md."""
    rows = {}
    for name in ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = attempt(name, Path(folder))
        print(rows[name].row(name), flush=True)  # noqa: T201
    text = DOC.read_text(encoding="utf-8")
    before, _, rest = text.partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of table -->")
    DOC.write_text(f"{before}<!-- table -->\n{table(rows)}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
