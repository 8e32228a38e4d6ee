"""Completion tokens per second: a rollout phase through `opd`, and through vLLM's own `LLM` class.

`python benchmarks/throughput.py --python VLLM_PYTHON --model MODEL` starts a server as
`rollout.launch` does, and a process with `vllm.LLM` of the same model, options and environment.
Both sample the same prompts with the same seeds and the same end, in turn. Prints a table. On a CPU
each side computes on as many threads as OMP_NUM_THREADS says. CPU time is that of all processes of
a side while it samples, and says more than seconds where a machine has other work (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from opd import config
from opd.http.keeper import MARK
from opd.models.tokenizers import load_tokenizer
from opd.run.console import Console
from opd.samplers.decoding import Decoding
from opd.samplers.vllm import StatisticsSampler, VllmSampler, request_seed
from opd.setup.launch import start_servers
from opd.setup.pair import load_pair
from opd.setup.samplers import student_samplers
from opd.types import Prompt, Sampler

LENGTH, CONTEXT, KEY = 64, 256, (0, 1)
# Of both sides; vLLM's defaults are others for a server than for `LLM`.
OPTIONS = {
    "enforce-eager": True,
    "max-model-len": CONTEXT,
    "dtype": "float32",
    "max-num-seqs": 64,
    "max-num-batched-tokens": 2048,
}
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
OWN = """
import json, sys, time
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    options = {name.replace("-", "_"): value for name, value in json.loads(sys.argv[2]).items()}
    llm = LLM(sys.argv[1], **options)
    print("ready", flush=True)
    for line in sys.stdin:
        rows = json.loads(line)
        prompts = [{"prompt_token_ids": r["ids"]} for r in rows]
        params = [
            SamplingParams(n=r["n"], seed=r["seed"], max_tokens=r["length"], temperature=1.0,
                           top_k=-1, logprobs=0, stop_token_ids=r["stop"],
                           skip_special_tokens=False)
            for r in rows
        ]
        began = time.monotonic()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.monotonic() - began
        tokens = sum(len(o.token_ids) for out in outputs for o in out.outputs)
        print("result", json.dumps([tokens, seconds]), flush=True)
"""


class Phase(NamedTuple):
    """A rollout phase."""

    tokens: int  # of completions
    seconds: float
    cpu: float  # seconds of CPU time, of all processes of the side

    @property
    def rate(self) -> float:
        """Completion tokens per second."""
        return self.tokens / self.seconds


def cpu_seconds(belongs: Callable[[Path], bool]) -> float:
    """CPU time that the processes of a side have taken so far.

    Args:
        belongs: whether a folder of /proc is that of such a process.
    """
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if belongs(process):
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])  # user and system
        except OSError:  # it has ended
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def ours(process: Path) -> bool:
    """Whether this process, or one of the server that `opd` has started."""
    own = process.name == str(os.getpid())
    return own or MARK.encode() + b"=" in (process / "environ").read_bytes()


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

    def __init__(self, python: str, model: str, folder: Path) -> None:
        self.log, program = folder / "own.log", folder / "own.py"
        program.write_text(OWN)  # a file: vLLM's processes import it again
        self.process = subprocess.Popen(
            [python, str(program), model, json.dumps(OPTIONS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
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

    def sample(self, prompts: list[Prompt], n: int, stop: list[int]) -> Phase:
        """One rollout phase."""
        rows = [
            {"ids": p.ids, "n": n, "seed": request_seed(KEY, p.index, 0), "length": LENGTH}
            | {"stop": stop}
            for p in prompts
        ]
        assert self.process.stdin is not None
        before = cpu_seconds(self._belongs)
        self.process.stdin.write(json.dumps(rows) + "\n")
        self.process.stdin.flush()
        tokens, seconds = json.loads(self._read("result"))
        return Phase(tokens, seconds, cpu_seconds(self._belongs) - before)

    def _belongs(self, process: Path) -> bool:
        return os.getsid(int(process.name)) == self.process.pid

    def end(self) -> None:
        """End it and the processes that it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)


def sample(sampler: Sampler, prompts: list[Prompt], n: int) -> Phase:
    """One rollout phase through `opd`."""
    before, began = cpu_seconds(ours), time.monotonic()
    rollouts = sampler.sample(prompts, n=n, key=KEY)
    seconds = time.monotonic() - began
    return Phase(sum(map(len, rollouts)), seconds, cpu_seconds(ours) - before)


def compare(
    own: OwnClient, sampler: VllmSampler, prompts: list[Prompt], n: int, rounds: int
) -> None:
    """The table: both sides in turn, the order turned around every round."""
    stop = sorted(sampler.stop)
    sides = {
        "vllm.LLM": lambda rows, n: own.sample(rows, n, stop),
        "opd": lambda rows, n: sample(sampler, rows, n),
    }
    for side in sides.values():
        side(prompts, 1)
    print(f"{'':5} {'vllm.LLM':^35}   {'opd':^35}   {'opd / vllm.LLM':^16}")
    columns = f"{'tokens':>8} {'s':>8} {'tokens/s':>8} {'CPU s':>8}"
    print(f"round {columns}   {columns}   tokens/s   CPU s")
    ratios = []
    for i in range(rounds):
        order = list(sides) if i % 2 == 0 else list(sides)[::-1]
        phases = {name: sides[name](prompts, n) for name in order}
        theirs, mine = phases["vllm.LLM"], phases["opd"]
        ratios.append((mine.rate / theirs.rate, mine.cpu / theirs.cpu))
        cells = "   ".join(
            f"{p.tokens:>8} {p.seconds:>8.2f} {p.rate:>8.1f} {p.cpu:>8.2f}" for p in (theirs, mine)
        )
        print(f"{i + 1:>5} {cells}   {ratios[-1][0]:>8.3f} {ratios[-1][1]:>7.3f}", flush=True)
    for name, values in zip(("tokens/s", "CPU s"), zip(*ratios, strict=True), strict=True):
        low, high = min(values), max(values)
        print(f"median of the ratios, {name}: {median(values):.3f} ({low:.3f} to {high:.3f})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="interpreter of vLLM's environment")
    parser.add_argument("--model", required=True, help="folder of the model")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ |= ENVIRONMENT  # of both sides
    prompts = prompts_of(args.model, args.prompts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prompts.jsonl").write_text('{"prompt": "x"}\n')
        data = {
            "student": {"model": args.model},
            "teacher": {"model": args.model},
            "prompts": {"path": str(folder / "prompts.jsonl")},
            "rollout": {"launch": {"python": args.python, "args": OPTIONS}},
            "output": {"dir": str(folder / "run")},
        }
        cfg = config.parse(data)
        with start_servers([cfg], Console("plain"), folder / "run"):
            own = OwnClient(args.python, args.model, folder)
            pair = load_pair(cfg, trains=False)
            sampler = student_samplers(cfg, pair, folder / "made")(Decoding(LENGTH), 16)
            assert isinstance(sampler, StatisticsSampler)
            assert isinstance(sampler.sampler, VllmSampler)
            sampler.sync(0)
            try:
                compare(own, sampler.sampler, prompts, args.n, args.rounds)
            finally:
                own.end()


if __name__ == "__main__":
    main()
