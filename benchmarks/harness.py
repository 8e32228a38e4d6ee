"""What every benchmark shares: fresh processes, alternating order, medians, tables, JSON.

A side is a command. It warms up by itself, times itself, and prints one line `RESULT {json}` with
`samples`: a list of numbers by name, one entry a timed repetition. Sides are called in turn, the
order turned around every round, so that a machine that slows down does so for everybody.
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


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The words every benchmark understands."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--quick", action="store_true", help="tiny shapes: does it run at all")
    made.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    made.add_argument("--rounds", type=int, default=2, help="fresh processes of each side")
    made.add_argument("--samples", type=int, default=5, help="timed repetitions of each in all")
    made.add_argument("--reps", type=int, default=1, help=argparse.SUPPRESS)  # of one process
    made.add_argument("--trl", default=str(HERE.parent / ".venv-trl"), help="venv with TRL")
    made.add_argument("--out", type=Path, default=BUILD, help="folder of the JSON files")
    made.add_argument("--side", default=None, help=argparse.SUPPRESS)
    return made


def trl_python(args: argparse.Namespace) -> str:
    """Python of the opponent's environment."""
    python = Path(args.trl) / "bin" / "python"
    if not python.is_file():
        sys.exit(f"{python} is missing: `make bench` installs the opponent, or give --trl FOLDER.")
    return str(python)


def run_sides(
    sides: Sides, args: argparse.Namespace, *, threads: int | None = None
) -> dict[str, list[Sample]]:
    """Call every side in `args.rounds` fresh processes, which share `args.samples` repetitions."""
    found: dict[str, list[Sample]] = {name: [] for name in sides}
    for turn in range(args.rounds):
        order = list(sides) if turn % 2 == 0 else list(reversed(sides))
        reps = len(range(turn, args.samples, args.rounds))
        for name in order:
            began = time.monotonic()
            samples = run_side([*sides[name], "--reps", str(reps)], threads or args.threads)
            found[name] += samples
            told = ", ".join(f"{s['seconds']:.3g} s" for s in samples)
            print(
                f"  round {turn + 1} {name}: {told} ({time.monotonic() - began:.0f} s in all)",
                file=sys.stderr,
                flush=True,
            )
    return found


def run_side(command: Sequence[str], threads: int) -> list[Sample]:
    """One fresh process; the samples it reports."""
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
    """What a side says when it is done."""
    print(RESULT + json.dumps({"samples": list(samples)}), flush=True)


def median(samples: Sequence[Sample], name: str = "seconds") -> float:
    """Median of one number over the repetitions."""
    return statistics.median(s[name] for s in samples)


def spread(samples: Sequence[Sample], name: str = "seconds") -> str:
    """Smallest and largest, for people."""
    values = [s[name] for s in samples]
    return f"{min(values):.3g}-{max(values):.3g}"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table; floats in three digits."""

    def cell(x: Any) -> str:
        return f"{x:.3g}" if isinstance(x, float) else str(x)

    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(cell, row)) + " |" for row in rows)])


def publish(args: argparse.Namespace, name: str, text: str, data: Mapping[str, Any]) -> None:
    """Print the table, and put it with every sample and the environment into a JSON file."""
    quick = " (quick: the numbers mean nothing)" if args.quick else ""
    print(f"\n## {name}{quick}\n\n{text}\n", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    whole = {"name": name, "quick": args.quick, "environment": environment(args), "table": text}
    path = args.out / f"{name}{'-quick' if args.quick else ''}.json"
    path.write_text(json.dumps(whole | dict(data), indent=1) + "\n", encoding="utf-8")


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
    """MiB of this process now (VmRSS) or at most since `reset_peak` (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def reset_peak() -> None:
    """Forget the peak so far (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@contextmanager
def timed(into: Sample):
    """Wall seconds, and MiB by which memory rose above what was held before."""
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
    """Warm up once (on less work, if somebody says what), then time `reps` calls."""
    (warm_up or work)()
    samples = []
    for _ in range(reps):
        sample: Sample = {}
        with timed(sample):
            found = work()
        samples.append(sample | dict(found or {}))
    return samples
