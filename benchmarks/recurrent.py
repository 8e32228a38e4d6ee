"""Recurrent states in slabs, whose finished rows are replaced, against left-padded batches.

Both sides are `HFSampler` on one random Qwen3.5 of few layers; completions end at recorded lengths,
or all at one. The model's own measurement of its cache would choose slabs.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from harness import make_parser, median, publish, repeat, report, run_sides, spread, table
from replay import ReplayingSampler
from workload import lengths

from opd.models.attention import use_grouped_attention
from opd.models.cache_support import CacheSupport
from opd.models.lm import LM
from opd.samplers.decoding import Decoding
from opd.types import Prompt

VOCAB, LIMIT, N, ROWS = 2000, 128, 4, 32
SIDES = ("aligned", "slabs")
CASES = ("recorded", "equal")


def make_model() -> LM:
    """Width 256, two layers of linear attention and two of attention."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, linear_num_key_heads=4,
        linear_num_value_heads=4, linear_key_head_dim=32, linear_value_head_dim=32,
        layer_types=["linear_attention", "full_attention"] * 2, initializer_range=0.1,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3_5ForCausalLM(config).float().eval()
    use_grouped_attention(model)
    return LM(model, VOCAB, "Qwen3.5")


def side(args) -> None:
    lm, random = make_model(), np.random.default_rng(0)
    layout, case = args.side.split("-")
    lm.cache_support = CacheSupport(layout, ready_masks=True)  # type: ignore[arg-type]
    count = 4 if args.quick else 16
    prompts = [
        Prompt(i, tuple(random.integers(3, VOCAB, int(random.integers(10, 40))).tolist()), "")
        for i in range(count)
    ]
    recorded = lengths(count * N, LIMIT)
    wanted = recorded if case == "recorded" else [round(np.mean(recorded))] * len(recorded)
    sampler = ReplayingSampler(
        lm, Decoding(LIMIT), stop=frozenset({1}), capture=16, batch=ROWS, wanted=wanted
    )

    def step() -> dict[str, float]:
        rollouts = sampler.sample(prompts, n=N, key=(0,))
        assert [len(r) for r in rollouts] == list(wanted)
        return {"tokens": sum(wanted)}

    report(repeat(step, args.reps))


def main() -> None:
    args = make_parser(__doc__).parse_args()
    if args.side:
        return side(args)
    if args.quick:
        args.rounds = args.samples = 1
    quick = ["--quick"] if args.quick else []
    lines, data = [], {}
    for case in CASES:
        sides = {
            name: [sys.executable, __file__, "--side", f"{name}-{case}", *quick] for name in SIDES
        }
        by_side = data[case] = run_sides(sides, args)
        for name, samples in by_side.items():
            ratio = median(by_side[SIDES[0]]) / median(samples)
            lines.append([case, name, median(samples), spread(samples), ratio])
    header = ["lengths", "rows", "s", "range", "aligned / this"]
    publish(args, "recurrent", table(header, lines), {"samples": data})


if __name__ == "__main__":
    main()
