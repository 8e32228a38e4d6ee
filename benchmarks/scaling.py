"""Scaling of opd: two processes against one, four times the batch, four times the length, FLOPs.

Two processes of one thread each run `opd train` under torchrun, on 128 completions per step: half
of the shipped default's batch, 64 rows per process (fewer rows load the weights as often).
FLOPs counted are 6 x backbone parameters x tokens of the update; the peak is this machine's own
matmul of the same precision, measured here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import workload
from harness import BUILD, HERE, make_parser, median, publish, report, run_sides, spread, table


def peak_flops(size: int, dtype: str) -> float:
    """Highest FLOP rate of six square matrix products."""
    a, b = torch.randn(2, size, size, dtype=getattr(torch, dtype))
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def train(args: argparse.Namespace) -> None:
    """`opd train` in `--processes` processes; valid tokens and seconds of every later step."""
    import subprocess

    import yaml

    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        rows = workload.rows(args.requests, large=args.quick)
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        run = {
            "student": {"model": args.student},
            "teacher": {"model": args.teacher},
            "prompts": {"path": str(prompts), "shuffle": False},
            "rollout": {"n": 1, "max_new_tokens": args.limit},
            "train": {
                "steps": args.reps + 1,
                "prompts_per_step": args.requests,
                "tokens_per_microbatch": args.tokens,
            },
            "output": {"dir": f"{folder}/run", "save_every": 1000},
        }
        (Path(folder) / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
        module = ["-m", "opd", "train", f"{folder}/run.yaml"]
        launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(args.processes)]
        command = module if args.processes == 1 else [*launch, *module]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout[-2000:] + done.stderr[-4000:])
        lines = (Path(folder) / "run" / "timings.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines][1:]
    report(
        [
            {"seconds": s["time/step_s"], "tokens": s["time/step_s"] * s["time/tokens_per_s"]}
            | {phase: s[f"time/{phase}_s"] for phase in ("rollout", "score", "update")}
            for s in steps
        ]
    )


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, default=BUILD / "student")
    for name in ("requests", "limit", "processes", "tokens"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--part", choices=["shapes", "processes"], help="one half only")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bf16_mixed"),
        help="precision of the shapes, and dtype of the peak",
    )
    parser.add_argument("--student", default="")
    parser.add_argument("--teacher", default="")
    args = parser.parse_args()
    if args.side:
        return train(args)
    if args.quick:
        student, teacher = workload.tiny_pair(args.out)
        args.rounds = args.samples = 1
    else:
        student, teacher = args.model, workload.make_teacher(args.model, args.out / "teacher")
    few, short = (2, 8) if args.quick else (16, 32)
    pair = ["--student", str(student), "--teacher", str(teacher)]
    mine = [sys.executable, str(HERE / "opd_step.py"), *pair, "--tokens", "1344",
            "--dtype", args.dtype]  # fmt: skip
    mine += ["--large"] if args.quick else []

    def shape(count: int, limit: int) -> list[str]:
        return [*mine, "--requests", str(count), "--limit", str(limit)]

    sizes = {
        "base": shape(few, short),
        "batch x4": shape(4 * few, short),
        "length x4": shape(few, 4 * short),
    }
    shapes = run_sides({} if args.part == "processes" else sizes, args)
    run = [sys.executable, __file__, "--side", "train", *pair, "--tokens", "1344",
           "--requests", str(8 * few), "--limit", str(short)]  # fmt: skip
    run += ["--quick"] if args.quick else []
    counts = () if args.part == "shapes" else (1, 2)
    processes = run_sides(
        {f"{n} x 1 thread": [*run, "--processes", str(n)] for n in counts},
        args,
        threads=1,
    )
    lines = []
    for by_side, base in ((shapes, "base"), (processes, "1 x 1 thread")):
        if not by_side:
            continue
        first = median(by_side[base], "tokens") / median(by_side[base])
        for name, samples in by_side.items():
            speed = median(samples, "tokens") / median(samples)
            phases = [median(samples, phase) for phase in ("rollout", "score", "update")]
            lines.append([name, median(samples), spread(samples), *phases, speed, speed / first])
    header = ["what", "median s", "range", "rollout", "score", "update", "valid tokens/s",
              "over the base"]  # fmt: skip
    text = table(header, lines)
    torch.set_num_threads(args.threads)
    dtype = "bfloat16" if args.dtype == "bf16_mixed" else "float32"
    peak = peak_flops(256 if args.quick else 4096, dtype)
    for name, samples in shapes.items():
        rate = median(samples, "flops") / median(samples, "update")
        text += f"\n\n{name}: update at {rate / 1e9:.1f} GFLOP/s, {rate / peak:.0%} of the matmul"
    text += f" peak ({peak / 1e9:.1f} GFLOP/s)." if shapes else ""
    name = f"scaling-{args.part}" if args.part else "scaling"
    publish(
        args,
        name if args.dtype == "float32" else f"{name}-{args.dtype}",
        text,
        {"samples": shapes | processes, "peak": peak},
    )


if __name__ == "__main__":
    main()
