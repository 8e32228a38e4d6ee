"""Small runs of the shipped pair that begin with, or wait for, a cold start."""

from __future__ import annotations

from pathlib import Path

from support.runs import short_demo

PROMPTS = 600  # of the demo's: the rounds take about 200
# The shipped pair overlaps from the start: a target out of reach, so that rounds are made, of two
# optimizer steps each.
COLD = {"completions_per_round": 64, "max_rounds": 3, "lr": 1e-3, "mass": 1.0}


def run_config(folder: Path, **cold) -> dict:
    data = short_demo(folder, PROMPTS)
    data["train"] |= {"steps": 2, "prompts_per_step": 4}
    data["output"] |= {"save_every": 1, "rollout_sample": 2, "keep": 3}
    data["eval"] = [e | {"limit": 8, "every": 1} for e in data["eval"][:1]]
    return data | {"coldstart": COLD | cold}
