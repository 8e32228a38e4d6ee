"""A whole step - generate, score, update - against TRL's DistillationTrainer.

Both sides: same models, prompts, recorded lengths, micro-batch and precision; gradient
checkpointing off, or with `--checkpointing` on. TRL generates all completions of the
step in one call, its best batch. Ours runs the loop of `opd train` on defaults, diagnostics and
files included, with the default loss; with `--full` also over the full vocabulary, which is TRL's
objective.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import workload
from harness import BUILD, HERE, make_parser, median, publish, run_sides, spread, table, trl_python


def models(args: argparse.Namespace) -> tuple[Path, Path]:
    if args.quick:
        return workload.tiny_pair(args.out)
    if args.large:
        return tuple(workload.make_large(args.out / f"large-{i}", i, quick=False) for i in (0, 1))
    return args.model, workload.make_teacher(args.model, args.out / "teacher")


def sides_of(args: argparse.Namespace) -> dict[str, list[str]]:
    student, teacher = models(args)
    rest = ["--student", str(student), "--teacher", str(teacher), "--limit", str(args.limit),
            "--requests", str(args.requests), "--n", str(args.n),
            "--dtype", args.dtype]  # fmt: skip
    rest += ["--large"] if args.large or args.quick else []
    rest += ["--checkpointing"] if args.checkpointing else []
    # as many padded tokens as TRL's micro-batch has: rows x (prompt of about 40 + longest answer)
    tokens = args.tokens or args.micro * (40 + args.limit)
    mine = [sys.executable, str(HERE / "opd_step.py"), *rest, "--tokens", str(tokens)]
    full = {"opd full vocabulary": [*mine, "--loss", "full"]}
    return {
        "opd default": mine,
        **(full if args.full else {}),
        "TRL": [trl_python(args), str(HERE / "trl_step.py"), *rest, "--micro", str(args.micro)],
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", type=Path, default=BUILD / "student")
    parser.add_argument("--large", action="store_true", help="random models, 262,144 tokens")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--n", type=int, default=1, help="responses per prompt")
    parser.add_argument("--limit", type=int, default=workload.LIMIT)
    parser.add_argument("--micro", type=int, default=8, help="rows of TRL's micro-batch")
    parser.add_argument("--tokens", type=int, default=0, help="ours, in padded tokens")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bf16_mixed"))
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--full", action="store_true", help="also TRL's objective on our side")
    args = parser.parse_args()
    if args.quick:
        args.requests, args.limit, args.micro, args.rounds, args.samples = 8, 16, 4, 1, 1
    by_side = run_sides(sides_of(args), args)
    lines = []
    for name, samples in by_side.items():
        phases = [
            median(samples, p) if p in samples[0] else "" for p in ("rollout", "score", "update")
        ]
        memory = median(samples, "above_mib")
        lines.append(
            [
                name, median(samples), spread(samples), median(samples, "tokens") / median(samples),
                median(by_side["TRL"]) / median(samples), *phases, memory,
                memory / median(by_side["TRL"], "above_mib"), len(samples),
            ]
        )  # fmt: skip
    header = ["side", "median s", "range", "valid tokens/s", "TRL / this", "rollout", "score",
              "update", "MiB above", "of TRL's", "n"]  # fmt: skip
    text = table(header, lines)
    if args.full:
        full, other = by_side["opd full vocabulary"][0]["loss"], by_side["TRL"][0]["loss"]
        text += (
            f"\n\nMean loss at the first timed step: ours over the full vocabulary {full:.4g}, TRL "
            f"{other:.4g} (same objective, other samples; loss.py checks that they are equal)."
        )
    text += "\n\nPeak MiB above the allocated models, ours by phase: " + ", ".join(
        f"{phase} {median(by_side['opd default'], f'{phase}_mib'):.0f}"
        for phase in ("rollout", "score", "update", "between", "rest")
    )
    name = f"step-{'large' if args.large else '49k'}-{args.dtype}"
    name += f"-n{args.n}" if args.n > 1 else ""
    name += "-checkpointing" if args.checkpointing else ""
    publish(args, name, text, {"samples": by_side})


if __name__ == "__main__":
    main()
