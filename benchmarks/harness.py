"""What every benchmark shares: fresh processes, alternating order, medians, tables, JSON.

A side is a command. It warms up by itself, times itself, and prints one line `RESULT {json}` with
`samples`: a list of numbers by name, one entry per timed repetition. Sides run in turn, in reversed
order every other round, so that a machine that slows down does so for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE.parent / "build" / "benchmarks"
RESULT = "RESULT "

Sample = dict[str, float]
Sides = Mapping[str, Sequence[str]]


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """The command-line arguments that every benchmark has."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes, to see whether it runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=2, help="fresh processes of each side")
    parser.add_argument("--samples", type=int, default=5, help="timed repetitions of each in all")
    parser.add_argument("--reps", type=int, default=1, help=argparse.SUPPRESS)  # of one process
    parser.add_argument("--trl", default=str(HERE.parent / ".venv-trl"), help="venv with TRL")
    parser.add_argument("--out", type=Path, default=BUILD, help="folder of the JSON files")
    parser.add_argument("--side", default=None, help=argparse.SUPPRESS)
    return parser


def trl_python(args: argparse.Namespace) -> str:
    """Python of TRL's environment."""
    python = Path(args.trl) / "bin" / "python"
    if not python.is_file():
        sys.exit(f"{python} is missing: `make bench` installs TRL there, or give --trl FOLDER.")
    return str(python)


def run_sides(
    sides: Sides, args: argparse.Namespace, *, threads: int | None = None
) -> dict[str, list[Sample]]:
    """Run every side in `args.rounds` fresh processes, `args.samples` repetitions in all."""
    by_side: dict[str, list[Sample]] = {name: [] for name in sides}
    for turn in range(args.rounds):
        order = list(sides) if turn % 2 == 0 else list(reversed(sides))
        reps = len(range(turn, args.samples, args.rounds))
        for name in order:
            began = time.monotonic()
            samples = run_side([*sides[name], "--reps", str(reps)], threads or args.threads)
            by_side[name] += samples
            times = ", ".join(f"{s['seconds']:.3g} s" for s in samples)
            print(
                f"  round {turn + 1} {name}: {times} ({time.monotonic() - began:.0f} s in all)",
                file=sys.stderr,
                flush=True,
            )
    return by_side


def run_side(command: Sequence[str], threads: int) -> list[Sample]:
    """Run one fresh process and return the samples it prints."""
    count = str(threads)
    env = os.environ | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "src")]),
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    samples: list[Sample] = json.loads(lines[-1].removeprefix(RESULT))["samples"]
    return samples


def report(samples: Sequence[Sample]) -> None:
    """Print the samples of a side, for the process that runs it."""
    print(RESULT + json.dumps({"samples": list(samples)}), flush=True)


def median(samples: Sequence[Sample], name: str = "seconds") -> float:
    """Median over the repetitions."""
    return statistics.median(s[name] for s in samples)


def spread(samples: Sequence[Sample], name: str = "seconds") -> str:
    """Smallest and largest value as text."""
    values = [s[name] for s in samples]
    return f"{min(values):.3g}-{max(values):.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; floats with three digits."""

    def cell(x: Any) -> str:
        return f"{x:.3g}" if isinstance(x, float) else str(x)

    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)])


def publish(args: argparse.Namespace, name: str, text: str, data: Mapping[str, Any]) -> None:
    """Print the table, and write it with every sample and the environment to a JSON file."""
    quick = " (quick: the numbers mean nothing)" if args.quick else ""
    print(f"\n## {name}{quick}\n\n{text}\n", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"name": name, "quick": args.quick, "environment": environment(args), "table": text}
    path = args.out / f"{name}{'-quick' if args.quick else ''}.json"
    path.write_text(json.dumps(record | dict(data), indent=1) + "\n", encoding="utf-8")


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    sha = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    )
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cpus": os.cpu_count(),
        "threads": args.threads,
        "rounds": args.rounds,
        "samples": args.samples,
        "load": os.getloadavg()[0],
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "commit": sha.stdout.strip(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def rss(field: str = "VmRSS") -> float:
    """Memory of this process in MiB: now (VmRSS), or the peak since `reset_peak` (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def reset_peak() -> None:
    """Reset the peak of memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@contextmanager
def timed(into: Sample):
    """Measure wall seconds, and the MiB by which memory rose above its level before."""
    reset_peak()
    before, began = rss(), time.perf_counter()
    yield
    into["seconds"] = time.perf_counter() - began
    into["extra_mib"] = rss("VmHWM") - before


def repeat(
    work: Callable[[], Mapping[str, float] | None],
    reps: int,
    warm_up: Callable[[], object] | None = None,
) -> list[Sample]:
    """Warm up once (by `warm_up`, if given), then time `reps` calls of `work`."""
    (warm_up or work)()
    samples = []
    for _ in range(reps):
        sample: Sample = {}
        with timed(sample):
            numbers = work()
        samples.append(sample | dict(numbers or {}))
    return samples
