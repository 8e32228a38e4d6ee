"""Completion tokens per second: a rollout phase through `opd`, and through vLLM's own `LLM` class.

`python benchmarks/throughput.py --python VLLM_PYTHON --model MODEL` starts a server as
`rollout.launch` does, and a process with `vllm.LLM` of the same model and options; both sample the
same prompts with the same seeds, in turn. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from opd import config
from opd.models.tokenizers import load_tokenizer
from opd.run.console import Console
from opd.samplers.sampling import Decoding
from opd.samplers.vllm import StatisticsSampler, request_seed
from opd.setup.launch import start_servers
from opd.setup.pair import load_pair
from opd.setup.samplers import student_samplers
from opd.types import Prompt, Sampler

LENGTH, CONTEXT, KEY = 64, 256, (0, 1)
OWN = """
import json, sys, time
from vllm import LLM, SamplingParams
model, context = sys.argv[1], int(sys.argv[2])
llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=context)
print("ready", flush=True)
for line in sys.stdin:
    rows = json.loads(line)
    prompts = [{"prompt_token_ids": r["ids"]} for r in rows]
    params = [
        SamplingParams(n=r["n"], seed=r["seed"], max_tokens=r["length"], temperature=1.0,
                       top_k=-1, logprobs=0, detokenize=True)
        for r in rows
    ]
    began = time.monotonic()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.monotonic() - began
    tokens = sum(len(o.token_ids) for out in outputs for o in out.outputs)
    print("result", json.dumps([tokens, seconds]), flush=True)
"""


def prompts_of(model: str, count: int) -> list[Prompt]:
    """Questions in the model's chat template."""
    tokenizer: Any = load_tokenizer(model)
    rows = []
    for i in range(count):
        text = f"Write a few sentences about the number {i + 11} and what it is used for."
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        rows.append(Prompt(i, tuple(ids), text))
    return rows


class OwnClient:
    """`vllm.LLM` in a process of its own."""

    def __init__(self, python: str, model: str, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [python, "-c", OWN, model, str(CONTEXT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            start_new_session=True,
        )
        self._read("ready")

    def _read(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
        raise SystemExit(f"vllm.LLM has ended:\n{self.log.read_text()[-2000:]}")

    def rate(self, prompts: list[Prompt], n: int) -> float:
        """Completion tokens per second."""
        rows = [
            {"ids": p.ids, "n": n, "seed": request_seed(KEY, p.index, 0), "length": LENGTH}
            for p in prompts
        ]
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(rows) + "\n")
        self.process.stdin.flush()
        tokens, seconds = json.loads(self._read("result"))
        return float(tokens / seconds)


def rate(sampler: Sampler, prompts: list[Prompt], n: int) -> float:
    """Completion tokens per second of a sampler."""
    began = time.monotonic()
    rollouts = sampler.sample(prompts, n=n, key=KEY)
    return sum(map(len, rollouts)) / (time.monotonic() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="interpreter of vLLM's environment")
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    prompts = prompts_of(args.model, args.prompts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prompts.jsonl").write_text('{"prompt": "x"}\n')
        options = {"enforce-eager": True, "max-model-len": CONTEXT, "dtype": "float32"}
        data = {
            "student": {"model": args.model},
            "teacher": {"model": args.model},
            "prompts": {"path": str(folder / "prompts.jsonl")},
            "rollout": {"launch": {"python": args.python, "args": options}},
            "output": {"dir": str(folder / "run")},
        }
        cfg = config.parse(data)
        with start_servers([cfg], Console("plain"), folder / "run"):
            own = OwnClient(args.python, args.model, folder / "own.log")
            pair = load_pair(cfg, trains=False)
            sampler = student_samplers(cfg, pair, folder / "made")(Decoding(LENGTH), 16)
            assert isinstance(sampler, StatisticsSampler)
            sampler.sync(0)
            own.rate(prompts[:2], 1)
            rate(sampler.sampler, prompts[:2], 1)
            rows = []
            for i in range(args.rounds):
                sides = [
                    lambda: own.rate(prompts, args.n),
                    lambda: rate(sampler.sampler, prompts, args.n),
                ]
                values = [sides[j]() for j in ((0, 1) if i % 2 == 0 else (1, 0))]
                rows.append(values if i % 2 == 0 else values[::-1])
                print(
                    f"round {i + 1}: vllm.LLM {rows[-1][0]:.1f}, opd {rows[-1][1]:.1f}", flush=True
                )
            theirs, ours = (median(r[j] for r in rows) for j in (0, 1))
            print(f"median tokens/s: vllm.LLM {theirs:.1f}, opd {ours:.1f}: {ours / theirs:.2f}")
            os.killpg(own.process.pid, signal.SIGKILL)  # it has processes of its own


if __name__ == "__main__":
    main()
