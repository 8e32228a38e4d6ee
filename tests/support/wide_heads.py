"""The same model with attention heads twice as wide, which vLLM's CPU build can run.

It has no attention for heads of 16 numbers, as the demo's models have. A Qwen3 model with heads of
32, half of them zero, computes the same: rotations of the numbers that are not zero keep their
frequencies, and the gains of the norms make up for the mean over twice as many.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def widen_heads(source: Path, target: Path) -> Path:
    """Write the model with wider heads; log-probs are the same up to rounding.

    Args:
        source: folder of a Qwen3 model.
        target: new folder.
    """
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    old = config["head_dim"]
    # Number i of a half (of old / 2) turns at the rate of number 2 i of the wider half.
    half = torch.arange(old // 2) * 2
    places = torch.cat([half, half + old])

    def widen(weights: torch.Tensor, axis: int) -> torch.Tensor:
        heads = weights.unflatten(axis, (-1, old))
        shape = list(heads.shape)
        shape[axis + 1] = 2 * old
        wide = torch.zeros(shape, dtype=weights.dtype)
        return wide.index_copy(axis + 1, places, heads).flatten(axis, axis + 1)

    weights = load_file(source / "model.safetensors")
    for name, value in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            weights[name] = widen(value, 0)
        elif name.endswith("o_proj.weight"):
            weights[name] = widen(value, 1).contiguous()
        elif name.endswith("q_norm.weight"):  # 1 / sqrt(2), and scores are divided by sqrt(2)
            weights[name] = widen(value, 0)
        elif name.endswith("k_norm.weight"):
            weights[name] = widen(value, 0) * 0.5**0.5
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config["head_dim"] = 2 * old
    (target / "config.json").write_text(json.dumps(config))
    return target
