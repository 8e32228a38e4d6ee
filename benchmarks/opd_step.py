"""One side of step.py: `opd train`'s own loop on a run.yaml of defaults, timed between updates."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import workload
from harness import report, reset_peak, rss
from replay import ReplayingSampler

from opd import config
from opd.recipes.distillation import distill
from opd.run.console import Console
from opd.run.jsonl import read_jsonl
from opd.setup.session import build


def run_config(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The default configuration with the comparison's models, lengths, micro-batch, precision."""
    prompts = folder / "prompts.jsonl"
    rows = workload.rows(args.requests // args.n, large=args.large)
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "student": {
            "model": args.student,
            "precision": args.dtype,
            "gradient_checkpointing": args.checkpointing,
        },
        "teacher": {"model": args.teacher, "dtype": args.dtype.replace("bf16_mixed", "bfloat16")},
        "prompts": {"path": str(prompts), "shuffle": False},
        "rollout": {"n": args.n, "max_new_tokens": args.limit},
        "loss": {"support": "full"} if args.loss == "full" else {},
        "train": {
            "steps": args.reps + 1,
            "prompts_per_step": len(rows),
            "tokens_per_microbatch": args.tokens or "auto",
        },
        "output": {"dir": str(folder / "run"), "save_every": 1000},
    }


class Peaks:
    """Peak memory in MiB by phase of a step, above the memory that has to be allocated.

    Weights, moments and teacher have to be in memory all the time, gradients in the update.
    Called by the loop's clock when a phase begins or ends.
    """

    def __init__(self, base: float, gradients: float) -> None:
        self.base, self.gradients = base, gradients
        self.phase, self.peaks = "between", dict[str, float]()

    def __call__(self, phase: str, seconds: float | None) -> None:
        self._mark()
        self.phase = phase if seconds is None else "between"

    def _mark(self) -> None:
        name = f"{self.phase}_mib"
        self.peaks[name] = max(self.peaks.get(name, -self.base), rss("VmHWM") - self.base)
        reset_peak()

    def take(self) -> dict[str, float]:
        """Peaks of a step, the highest as `above_mib`, and memory after the step (`rest_mib`)."""
        self._mark()
        peaks, self.peaks = self.peaks | {"rest_mib": rss() - self.base}, {}
        above = max(peaks.values())
        for name in peaks.keys() - {"update_mib"}:
            peaks[name] += self.gradients
        return peaks | {"above_mib": above}


class Timed(ReplayingSampler):
    """Recorded lengths, and a stopwatch that is read after every step."""

    def watch(self, peaks: Peaks) -> None:
        self.recorded, self.wanted = self.wanted, [min(n, workload.WARM_UP) for n in self.wanted]
        self.peaks, self.began = peaks, 0.0
        self.samples: list[dict[str, float]] = []

    def sync(self, version: int) -> None:
        super().sync(version)
        now = time.perf_counter()
        peaks = self.peaks.take()
        if version == 1:
            self.wanted = self.recorded
        if version > 1:
            times = {"seconds": now - self.began, "tokens": sum(self.wanted)}
            self.samples.append(times | peaks)
        self.began = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--tokens", type=int, default=0)
    parser.add_argument("--reps", type=int, required=True)
    parser.add_argument("--n", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bf16_mixed"))
    parser.add_argument("--loss", default="default")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401  TRL's side imports them too

    base = rss()
    with tempfile.TemporaryDirectory() as folder:
        cfg = config.parse(run_config(args, Path(folder)))
        session, completions = build(cfg, resume=False, overwrite=False, console=Console("quiet"))
        student, old = session.learner.student, session.source.sampler
        trained = sum(p.numel() * p.element_size() for p in student.parameters().values())
        allocated = 4 * trained + sum(
            p.numel() * p.element_size() for p in session.source.teacher.lm.model.parameters()
        )
        sampler = Timed(
            old.lm, old.decoding, stop=old.stop, capture=old.capture,
            batch=old.batch, wanted=workload.lengths(args.requests, args.limit),
        )  # fmt: skip
        sampler.watch(Peaks(base + allocated / 2**20, trained / 2**20))
        session.clock._listener = sampler.peaks
        object.__setattr__(session.source, "sampler", sampler)
        distill(session, completions)
        session.folder.close()
        head = student.head.weight.numel()
        prompt_lengths = [len(p.ids) for p in session.source.prompts.prompts for _ in range(args.n)]
        num_tokens = sum(p + n - 1 for p, n in zip(prompt_lengths, sampler.wanted, strict=True))
        flops = 6.0 * (student.num_parameters() - head) * num_tokens
        lines = read_jsonl(Path(folder) / "run" / "metrics.jsonl")[1:]
        clocks = read_jsonl(Path(folder) / "run" / "timings.jsonl")[1:]
    for sample, line, clock in zip(sampler.samples, lines, clocks, strict=True):
        assert line["rollout/length"] * args.requests == sample["tokens"]
        sample["loss"] = line["train/loss"]
        sample["flops"] = flops
        for phase in ("rollout", "score", "update"):
            sample[phase] = clock[f"time/{phase}_s"]
    report(sampler.samples)


if __name__ == "__main__":
    main()
