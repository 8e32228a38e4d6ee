"""Would it pay to run a prompt once for its n responses in the update? Forward and backward only.

One way feeds every response with its prompt (what `opd.update` does); the other runs each prompt
once on a key-value cache, repeats the cache for its responses and feeds those alone, gradients
flowing back through the cache. Gradients are compared.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from harness import BUILD, median, parser, publish, repeat, report, run_sides, spread, table
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

PROMPTS = 2
SHAPES = ((40, 64, 4), (200, 64, 4), (200, 256, 4), (40, 64, 8))


def whole(model, prompts, answers):
    n = answers.shape[1]
    ids = torch.cat([prompts.repeat_interleave(n, 0), answers.flatten(0, 1)[:, :-1]], 1)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[:, prompts.shape[1] - 1 :]


def grouped(model, prompts, answers):
    n, cache = answers.shape[1], DynamicCache(config=model.config)
    first = model.base_model(input_ids=prompts, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(n)
    rest = model.base_model(
        input_ids=answers.flatten(0, 1)[:, :-1], past_key_values=cache, use_cache=True
    )
    last = first.last_hidden_state[:, -1:].repeat_interleave(n, 0)
    return torch.cat([last, rest.last_hidden_state], 1)


def main() -> None:
    args_of = parser(__doc__)
    args_of.add_argument("--model", type=Path, default=BUILD / "student")
    args_of.add_argument("--shape", type=int, nargs=3)
    args = args_of.parse_args()
    if args.side:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        prompt, answer, n = args.shape
        random = torch.Generator().manual_seed(0)
        prompts = torch.randint(3, 4000, (PROMPTS, prompt), generator=random)
        answers = torch.randint(3, 4000, (PROMPTS, n, answer), generator=random)
        way = {"whole": whole, "grouped": grouped}[args.side]

        def step():
            model.zero_grad(set_to_none=True)
            way(model, prompts, answers).square().mean().backward()
            norm = sum(p.grad.double().square().sum() for p in model.parameters()) ** 0.5
            return {"norm": float(norm)}

        return report(repeat(step, args.reps))
    if args.quick:
        from workload import tiny_pair

        args.model, args.rounds, args.samples = tiny_pair(args.out)[0], 1, 1
    lines, data = [], {}
    for shape in SHAPES[:1] if args.quick else SHAPES:
        rest = ["--model", str(args.model), "--shape", *map(str, shape)]
        sides = {n: [sys.executable, __file__, "--side", n, *rest] for n in ("whole", "grouped")}
        found = data[str(shape)] = run_sides(sides, args)
        a, b = (found[side][0]["norm"] for side in ("whole", "grouped"))
        if abs(a - b) > 1e-3 * a:
            sys.exit(f"gradient norms {a} and {b}: not the same gradient")
        prompt, answer, n = shape
        expected = n * (prompt + answer) / (prompt + n * answer)
        for name, samples in found.items():
            ratio = median(found["whole"]) / median(samples)
            memory = median(samples, "extra_mib")
            lines.append(
                [prompt, answer, n, name, median(samples), spread(samples), ratio, expected, memory]
            )
    header = ["prompt", "answer", "n", "way", "median s", "range", "whole / this", "expected",
              "extra MiB"]  # fmt: skip
    publish(args, "grouped", table(header, lines), {"samples": data})


if __name__ == "__main__":
    main()
